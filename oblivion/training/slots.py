"""Choose how many clients are trained together: a pure function of shape and device, from what benchmarks measured."""

from __future__ import annotations

import math

_ROW_TOKENS = 128
"""The nominal tokens of a row: one client's data must not decide how others are rounded."""
_CPU_TOKENS = ((128, 4096), (256, 512))
"""For models up to each width, the most tokens of a step for which fusing pays; beyond, a step is bound by arithmetic
(`python -m benchmarks rounds`, one thread)."""
_CPU_WIDE_TOKENS = 256
_GPU_TOKENS = 16384
_MOST = {"cpu": 8, "cuda": 64}


def slots_for(width: int, batch_size: int, device: str, clients: int) -> int:
    """Return the number of clients per cohort for ``train.cohort = "auto"``.

    Parameters
    ----------
    width : int
        Hidden size of the base model.
    batch_size : int
        The number of rows in an optimizer step of one client.
    device : str
        ``"cpu"`` or ``"cuda"``.
    clients : int
        The clients of a round, as the config asks for. On a CPU they are cut into an even number of cohorts, so that
        two hosts have as much to do each.
    """
    step = batch_size * _ROW_TOKENS
    if device != "cpu":
        return max(1, min(_MOST[device], _GPU_TOKENS // step))
    tokens = next((budget for widest, budget in _CPU_TOKENS if width <= widest), _CPU_WIDE_TOKENS)
    most = max(1, min(_MOST[device], tokens // step))
    cohorts = 2 * math.ceil(clients / (2 * most))
    return math.ceil(clients / cohorts)
