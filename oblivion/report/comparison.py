"""Where each model of a request stands: how much it remembers, next to a model that never saw the data.

The oracle is the reference everywhere. A removal is as good as it is close to it: below the oracle is as far
off as above, because a model that avoids the data tells that it was there.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from oblivion.run.records import Measure, ModelRecord, RequestRecord

FORGET_PROBABILITY = "forget_Q_A_Prob"
MODEL_UTILITY = "model_utility"
MEMBERSHIP = "mia_min_k"
ORIGINAL = "original"
ORACLE = "oracle"
NO_GAP = 0.01
"""Original and oracle closer than this (in probability): too little to say what share a removal closed."""
LEVEL = 0.005
"""Differences in probability below this are not called one way or the other."""
COLLAPSE = 0.5
"""A utility below this share of the oracle's is called collapsed."""
_ORACLE = re.compile(r"oracle(-\d+)?")


@dataclass(frozen=True, kw_only=True)
class Standing:
    """One model beside the oracle.

    Attributes
    ----------
    key, label, model
        Which model.
    forget : Measure
        Probability of the forgotten answers.
    distance : float or None
        `forget` minus the oracle's; negative is below the oracle.
    closed : float or None
        Share of the gap between original and oracle that is closed; above 1 it went past the oracle. None where that
        gap is nearly nothing, or lies within the oracle's interval.
    below : bool
        Whether it went below every oracle there is, and below what their intervals allow.
    others : float or None
        Mean probability over the other clients, each client counting the same.
    utility : float or None
        Model utility, or `others` where that was not measured.
    collapsed : bool
        Whether the utility fell below half of the oracle's (without an oracle: of the original's), or cannot be
        computed any more where the oracle's can.
    membership : float or None
        AUC of the min-k attack on the forgotten rows.
    recognised : {"", "still", "by avoidance"}
        Whether that AUC lies above the oracles' intervals (the rows can still be recognised) or below them (they can be
        recognised because the model avoids them: over-forgotten).
    """

    key: str
    label: str
    model: ModelRecord
    forget: Measure
    distance: float | None
    closed: float | None
    below: bool
    others: float | None
    utility: float | None
    collapsed: bool
    membership: float | None
    recognised: Literal["", "still", "by avoidance"]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """All models of one request: `methods` in the order of the file, `oracles` the reference first."""

    request: RequestRecord
    original: Standing | None
    oracles: tuple[Standing, ...]
    methods: tuple[Standing, ...]
    utility_name: str
    measurable: bool
    """Whether the original lies so far above the oracle, and above its interval, that there is a gap to close."""

    @property
    def oracle(self) -> Standing | None:
        """The reference, or None."""
        return self.oracles[0] if self.oracles else None

    @property
    def gap(self) -> float | None:
        """Original minus oracle, in probability of the forgotten answers."""
        if self.original is None or self.oracle is None:
            return None
        if self.original.forget.value is None or self.oracle.forget.value is None:
            return None
        return self.original.forget.value - self.oracle.forget.value

    @property
    def standings(self) -> tuple[Standing, ...]:
        """Original, oracles, methods."""
        first = (self.original,) if self.original else ()
        return (*first, *self.oracles, *self.methods)


def is_oracle(key: str) -> bool:
    """Whether a model's name is that of an oracle (``oracle``, ``oracle-2``, ...)."""
    return _ORACLE.fullmatch(key) is not None


def own_entries(request: RequestRecord) -> tuple[str, ...]:
    """The per-client entries that belong to who asked; the first that is there holds the forgotten data."""
    return (f"{request.client} (forgotten)", request.client, f"{request.client} (kept)")


def client_probability(model: ModelRecord, client: str) -> float | None:
    """Mean probability of the client's own answers, or None."""
    measure = model.clients.get(client, {}).get("probability")
    return measure.value if measure else None


def client_names(request: RequestRecord) -> list[str]:
    """Every client that was measured: who asked first, then by name (``client-10`` after ``client-9``)."""
    own = own_entries(request)
    names = {name for model in request.models.values() for name in model.clients}

    def natural(name: str) -> list[tuple[int, int | str]]:
        return [(0, int(part)) if part.isdecimal() else (1, part) for part in re.split(r"(\d+)", name) if part]

    return [name for name in own if name in names] + sorted(names - set(own), key=natural)


def others_probabilities(request: RequestRecord, model: ModelRecord) -> list[float]:
    """The probability of every client that stays and was measured."""
    values = [client_probability(model, name) for name in sorted(set(model.clients) - set(own_entries(request)))]
    return [value for value in values if value is not None]


def others_probability(request: RequestRecord, model: ModelRecord) -> float | None:
    """Mean probability over the clients that stay; every client counts the same, however much data it has."""
    measured = others_probabilities(request, model)
    return sum(measured) / len(measured) if measured else None


def _central(model: ModelRecord | None, name: str) -> Measure:
    return model.central.get(name, Measure()) if model else Measure()


def _forgetting(request: RequestRecord) -> dict[str, Measure]:
    # One source for all models, so that like is compared with like.
    central = {key: _central(model, FORGET_PROBABILITY) for key, model in request.models.items()}
    references = [measure for key, measure in central.items() if key == ORIGINAL or is_oracle(key)]
    if references and all(measure.value is not None for measure in references):
        return central
    measured: dict[str, Measure] = {}
    for key, model in request.models.items():
        entry = next((model.clients[name] for name in own_entries(request)[:2] if name in model.clients), {})
        measured[key] = entry.get("probability", Measure())
    return measured if any(measure.value is not None for measure in measured.values()) else central


def compare(request: RequestRecord) -> Comparison:
    """Put every model of a request beside its oracle.

    Parameters
    ----------
    request : RequestRecord
        With any of: ``original``, ``oracle``, ``oracle-2``, ..., and one model per removal tried.

    Returns
    -------
    Comparison
        With None wherever a number, or the reference it is compared with, is missing.
    """
    forget = _forgetting(request)
    oracles = sorted((key for key in request.models if is_oracle(key)), key=lambda key: (len(key), key))
    reference = request.models.get(oracles[0]) if oracles else None
    # Utility is a harmonic mean: on a base model too weak for one of its nine parts it is 0 for all, and says nothing.
    by_utility = any(_central(model, MODEL_UTILITY).value for model in request.models.values())

    def utility(model: ModelRecord | None) -> float | None:
        if model is None:
            return None
        return _central(model, MODEL_UTILITY).value if by_utility else others_probability(request, model)

    goal = forget[oracles[0]].value if oracles else None
    start = forget[ORIGINAL].value if ORIGINAL in request.models else None
    oracle_values = [value for key in oracles if (value := forget[key].value) is not None]
    # The oracle's own interval over the rows is what cannot be told from it.
    floor = min(
        [v - LEVEL for v in oracle_values] + [i[0] for key in oracles if (i := forget[key].interval)], default=0.0
    )
    interval = forget[oracles[0]].interval if oracles else None
    gap = start - goal if start is not None and goal is not None else 0.0
    measurable = gap >= NO_GAP and (interval is None or (start or 0.0) > interval[1])
    standard = utility(reference if reference else request.models.get(ORIGINAL))
    attacks = [_central(request.models[key], MEMBERSHIP) for key in oracles]
    # An interval of no width, at an AUC of 0 or 1, says nothing.
    bounds = [attack.interval for attack in attacks if attack.interval and attack.interval[0] < attack.interval[1]]

    def recognised(attack: float | None) -> Literal["", "still", "by avoidance"]:
        if attack is None or not bounds or min(low for low, _ in bounds) <= attack <= max(high for _, high in bounds):
            return ""
        return "still" if attack > max(high for _, high in bounds) else "by avoidance"

    def standing(key: str) -> Standing:
        model, value, useful = request.models[key], forget[key].value, utility(request.models[key])
        lost = useful is None and bool(standard) and bool(_central(model, MODEL_UTILITY).reason)
        closed = (start - value) / gap if measurable and start is not None and value is not None else None
        return Standing(
            key=key,
            label=request.label(key),
            model=model,
            forget=forget[key],
            distance=None if value is None or goal is None else value - goal,
            closed=closed,
            below=value is not None and bool(oracle_values) and value < floor,
            others=others_probability(request, model),
            utility=useful,
            collapsed=lost or (useful is not None and standard is not None and useful < COLLAPSE * standard),
            membership=_central(model, MEMBERSHIP).value,
            recognised=recognised(_central(model, MEMBERSHIP).value),
        )

    return Comparison(
        request=request,
        original=standing(ORIGINAL) if ORIGINAL in request.models else None,
        oracles=tuple(standing(key) for key in oracles),
        methods=tuple(standing(key) for key in request.models if key != ORIGINAL and not is_oracle(key)),
        measurable=measurable,
        utility_name="model utility" if by_utility else "the other clients’ probability",
    )
