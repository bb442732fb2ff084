"""Write what the page says of privacy: never an epsilon without its unit, its delta and what it leaves out."""

from __future__ import annotations

from typing import Any

from oblivion.report.formatting import number, plural, scientific
from oblivion.run.records import PrivacyRecord, PrivacyRound

_NO_BOUND = "no bound"
_UNITS = {"sample": "one sample of a client", "client": "everything that one client sends"}
_NEIGHBOURS = {
    "sample": "Epsilon compares models that saw a row with models that had a null row in its place.",
    "client": "Epsilon compares models with and without a client. Where another client takes its place in a round, "
    "that round counts twice the clipping bound.",
}
_NOISE = {
    "sample": "Every client runs DP-SGD, which clips and noises the gradients of samples before anything leaves it.",
    "client": "The server, which itself sees the updates, clips them and adds noise to their sum.",
}


def privacy_view(record: PrivacyRecord | None) -> dict[str, Any] | None:
    """Return the section on privacy; None for a run without.

    Returns
    -------
    dict
        ``said`` (sentences), ``branches`` (rounds and epsilon after the last, over all that came before), ``rounds``
        (branch, round, epsilon) and ``forgetting`` (how many clients, epsilon, delta, the exact epsilon).
    """
    if record is None:
        return None
    unit = _UNITS.get(record.unit, record.unit)
    delta = scientific(record.delta)
    settings = f"noise multiplier {number(record.noise_multiplier)}, clipped to {number(record.clip_norm)}"
    bound = f"; privacy.max-epsilon is {number(record.max_epsilon)}" if record.max_epsilon else ""
    said = [
        f"Unit of privacy: {unit}. Epsilon {_epsilon(record.epsilon)} at delta {delta}, over all models of this run "
        f"together and for the client that took part most ({settings}{bound}).",
        _NEIGHBOURS.get(record.unit, ""),
        _NOISE.get(record.unit, ""),
        "Epsilon does not cover what is published without noise: the measurements on this page, which are taken on the "
        "clients’ rows; who took part, with how many rows; how long it took; and whatever else docs/privacy.md lists.",
    ]
    return {
        "said": [sentence for sentence in said if sentence],
        "branches": [
            {"name": name, "rounds": plural(len(rounds), "round"), "epsilon": _epsilon(rounds[-1].epsilon)}
            for name, rounds in _by_branch(record).items()
        ],
        "rounds": [
            {"name": one.branch, "round": str(one.round), "epsilon": _epsilon(one.epsilon)} for one in record.rounds
        ],
        "delta": delta,
        "forgetting": [
            {
                "clients": plural(one.clients, "client"),
                "epsilon": _epsilon(one.epsilon) if (one.delta or 0) < 1 else _NO_BOUND,
                "delta": scientific(one.delta),
                "gaussian": _epsilon(one.gaussian_epsilon),
            }
            for one in record.forgetting
        ],
    }


def _by_branch(record: PrivacyRecord) -> dict[str, list[PrivacyRound]]:
    grouped: dict[str, list[PrivacyRound]] = {}
    for one in record.rounds:
        grouped.setdefault(one.branch, []).append(one)
    return grouped


def _epsilon(value: float | None) -> str:
    """Write an epsilon; infinity is null in the file."""
    return _NO_BOUND if value is None else number(value)
