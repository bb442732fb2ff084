"""Compare the models of a request: how much each remembers, next to a model that never saw the data.

The oracle is the reference everywhere. A removal is as good as it is close to it: below the oracle is as far
off as above, because a model that avoids the data tells that it was there. Which numbers count, and what they are
called, the run's suite says.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from oblivion.metrics.engine.suite import Number, Suite
from oblivion.run.records import Measure, ModelRecord, RequestRecord

ORIGINAL = "original"
ORACLE = "oracle"
NO_GAP = 0.01
"""A smaller distance between original and oracle is too little to say what share of it a removal closed."""
LEVEL = 0.005
"""Differences below this are not called one way or the other."""
COLLAPSE = 0.5
"""A utility below this share of the oracle's is called collapsed."""
_ORACLE = re.compile(r"oracle(-\d+)?")


@dataclass(frozen=True, kw_only=True)
class Standing:
    """One model, compared with the oracle.

    Attributes
    ----------
    key, label, model
        Which model.
    forget : Measure
        How much of the forgotten rows it knows: the suite's number.
    distance : float or None
        `forget` minus the oracle's.
    closed : float or None
        Share of the gap between original and oracle that is closed; above 1 it went past the oracle. None where that
        gap is nearly nothing, or lies within the oracle's interval.
    passed : bool
        Whether it knows less of them than every oracle there is, and less than their intervals allow.
    others : float or None
        Mean of the other clients' own number, each client counting the same.
    utility : float or None
        The suite's utility, or `others` where that was not measured.
    collapsed : bool
        Whether the utility fell below half of the oracle's (without an oracle: of the original's), or cannot be
        computed any more where the oracle's can.
    membership : float or None
        AUC of the suite's attack on the forgotten rows.
    recognised : {"", "still", "by avoidance"}
        Whether that AUC lies beyond the oracles' intervals, on the side of a model that remembers (the rows can still
        be recognised) or on the other (they can be recognised because the model avoids them: over-forgotten).
    """

    key: str
    label: str
    model: ModelRecord
    forget: Measure
    distance: float | None
    closed: float | None
    passed: bool
    others: float | None
    utility: float | None
    collapsed: bool
    membership: float | None
    recognised: Literal["", "still", "by avoidance"]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """All models of one request: `methods` in the order of the file, `oracles` the reference first.

    `number` says what `Standing.forget` is, and `suite` with what everything was measured.
    """

    request: RequestRecord
    suite: Suite
    number: Number
    original: Standing | None
    oracles: tuple[Standing, ...]
    methods: tuple[Standing, ...]
    utility_name: str
    measurable: bool
    """Whether the original lies so far from the oracle, and outside its interval, that there is a gap to close."""

    @property
    def oracle(self) -> Standing | None:
        """Return the reference, or None."""
        return self.oracles[0] if self.oracles else None

    @property
    def gap(self) -> float | None:
        """Return how much more of the forgotten rows the original knows than the oracle."""
        if self.original is None or self.oracle is None:
            return None
        if self.original.forget.value is None or self.oracle.forget.value is None:
            return None
        return _sign(self.number) * (self.original.forget.value - self.oracle.forget.value)

    @property
    def standings(self) -> tuple[Standing, ...]:
        """Return the original, the oracles and the methods."""
        first = (self.original,) if self.original else ()
        return (*first, *self.oracles, *self.methods)


def _sign(number: Number) -> int:
    """Return 1 where a model that remembers has a high number, and -1 where it has a low one."""
    return 1 if number.higher_remembers else -1


def is_oracle(key: str) -> bool:
    """Return whether a model's name is that of an oracle (``oracle``, ``oracle-2``, ...)."""
    return _ORACLE.fullmatch(key) is not None


def own_entries(request: RequestRecord) -> tuple[str, ...]:
    """Return the names of the entries of the client who asked; the first that exists holds the forgotten data."""
    return (f"{request.client} (forgotten)", request.client, f"{request.client} (kept)")


def client_measure(model: ModelRecord, client: str, suite: Suite) -> Measure:
    """Return what a client measured on its own rows: the suite's number for clients."""
    return model.clients.get(client, {}).get(suite.headline.own.metric, Measure())


def client_names(request: RequestRecord) -> list[str]:
    """Return every measured client: first the one who asked, then by name (``client-10`` after ``client-9``)."""
    own = own_entries(request)
    names = {name for model in request.models.values() for name in model.clients}

    def natural(name: str) -> list[tuple[int, int | str]]:
        return [(0, int(part)) if part.isdecimal() else (1, part) for part in re.split(r"(\d+)", name) if part]

    return [name for name in own if name in names] + sorted(names - set(own), key=natural)


def others_values(request: RequestRecord, model: ModelRecord, suite: Suite) -> list[float]:
    """Return what the clients that stay measured on their own rows."""
    names = sorted(set(model.clients) - set(own_entries(request)))
    values = [client_measure(model, name, suite).value for name in names]
    return [value for value in values if value is not None]


def others_mean(request: RequestRecord, model: ModelRecord, suite: Suite) -> float | None:
    """Return the mean over the clients that stay; every client counts the same, however much data it has."""
    measured = others_values(request, model, suite)
    return sum(measured) / len(measured) if measured else None


def _central(model: ModelRecord, number: Number | None) -> Measure:
    return model.central.get(number.metric, Measure()) if number else Measure()


def _forgetting(request: RequestRecord, suite: Suite) -> tuple[Number, dict[str, Measure]]:
    """Return the number that says forgetting, of every model: the server's, or else that of the client who asked."""
    headline = suite.headline
    # All models are measured from one source, so that like is compared with like.
    central = {key: _central(model, headline.forget) for key, model in request.models.items()}
    references = [measure for key, measure in central.items() if key == ORIGINAL or is_oracle(key)]
    if references and all(measure.value is not None for measure in references):
        return headline.forget, central
    measured: dict[str, Measure] = {}
    for key, model in request.models.items():
        entry = next((model.clients[name] for name in own_entries(request)[:2] if name in model.clients), {})
        measured[key] = entry.get(headline.own.metric, Measure())
    if any(measure.value is not None for measure in measured.values()):
        return headline.own, measured
    return headline.forget, central


def _utilities(request: RequestRecord, suite: Suite) -> tuple[str, dict[str, float | None]]:
    """Return what sentences call the utility, and its value for every model: the suite's, or else `others_mean`."""
    number, models = suite.headline.utility, request.models
    measured = {key: _central(model, number).value for key, model in models.items()}
    # A utility that is 0 for all, as a harmonic mean is on a base model too weak for one of its parts, says nothing.
    if number and any(measured.values()):
        return number.noun, measured
    return others_name(suite), {key: others_mean(request, model, suite) for key, model in models.items()}


def compare(request: RequestRecord, suite: Suite) -> Comparison:
    """Put every model of a request beside its oracle.

    Parameters
    ----------
    request : RequestRecord
        With any of: ``original``, ``oracle``, ``oracle-2``, ..., and one model per removal tried.
    suite : Suite
        With which the run measures.

    Returns
    -------
    Comparison
        With None wherever a number, or the reference it is compared with, is missing.
    """
    headline = suite.headline
    number, forget = _forgetting(request, suite)
    sign = _sign(number)
    utility_name, utility = _utilities(request, suite)
    oracles = sorted((key for key in request.models if is_oracle(key)), key=lambda key: (len(key), key))
    goal = forget[oracles[0]].value if oracles else None
    start = forget[ORIGINAL].value if ORIGINAL in request.models else None
    floor = _floor([forget[key] for key in oracles], sign)
    measurable = _is_gap(forget.get(ORIGINAL), forget[oracles[0]] if oracles else None, sign)
    standard = utility.get(oracles[0] if oracles else ORIGINAL)
    attacks = [_central(request.models[key], headline.membership) for key in oracles]

    def standing(key: str) -> Standing:
        model, value, useful = request.models[key], forget[key].value, utility[key]
        lost = useful is None and bool(standard) and bool(_central(model, headline.utility).reason)
        closed = None
        if measurable and start is not None and goal is not None and value is not None:
            closed = (start - value) / (start - goal)
        return Standing(
            key=key,
            label=request.label(key),
            model=model,
            forget=forget[key],
            distance=None if value is None or goal is None else value - goal,
            closed=closed,
            passed=value is not None and floor is not None and sign * value < floor,
            others=others_mean(request, model, suite),
            utility=useful,
            collapsed=lost or (useful is not None and standard is not None and useful < COLLAPSE * standard),
            membership=_central(model, headline.membership).value,
            recognised=_recognised(_central(model, headline.membership).value, attacks, headline.membership),
        )

    return Comparison(
        request=request,
        suite=suite,
        number=number,
        original=standing(ORIGINAL) if ORIGINAL in request.models else None,
        oracles=tuple(standing(key) for key in oracles),
        methods=tuple(standing(key) for key in request.models if key != ORIGINAL and not is_oracle(key)),
        measurable=measurable,
        utility_name=utility_name,
    )


def others_name(suite: Suite) -> str:
    """Return what sentences call the mean of the other clients' own number."""
    return f"the other clients’ {suite.headline.own.noun}"


def _floor(oracles: Sequence[Measure], sign: int) -> float | None:
    """Return what a model must fall below to know less than every oracle; None without an oracle's value."""
    values = [sign * measure.value for measure in oracles if measure.value is not None]
    if not values:
        return None
    # A value inside the oracle's own interval over the rows cannot be told from the oracle's.
    ends = [sign * end for measure in oracles if measure.interval for end in measure.interval]
    return min([value - LEVEL for value in values] + ends)


def _is_gap(original: Measure | None, oracle: Measure | None, sign: int) -> bool:
    if original is None or oracle is None or original.value is None or oracle.value is None:
        return False
    outside = oracle.interval is None or sign * original.value > max(sign * end for end in oracle.interval)
    return sign * (original.value - oracle.value) >= NO_GAP and outside


def _recognised(
    attack: float | None, oracles: Sequence[Measure], number: Number | None
) -> Literal["", "still", "by avoidance"]:
    # An interval of no width, at an AUC of 0 or 1, says nothing.
    bounds = [one.interval for one in oracles if one.interval and one.interval[0] < one.interval[1]]
    if attack is None or number is None or not bounds:
        return ""
    low, high = min(low for low, _ in bounds), max(high for _, high in bounds)
    if low <= attack <= high:
        return ""
    return "still" if (attack > high) == number.higher_remembers else "by avoidance"
