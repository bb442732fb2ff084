"""Bound how far a visit can take the adapter, whatever the data, by what its optimizer and its settings allow.

AdamW (Loshchilov and Hutter, 2019, Algorithm 2) moves a parameter in step t by at most ``eta r_t``, with ``r_t`` the
largest value that ``|m_t| / sqrt(v_t)``, both corrected for their start at zero, can have. By the inequality of Cauchy
and Schwarz, with ``q = beta_1^2 / beta_2``:

    r_t <= (1 - beta_1) / (1 - beta_1^t) * sqrt((1 - q^t) / (1 - q) * (1 - beta_2^t) / (1 - beta_2))

which is 1 in the first step, 1.05 in the tenth and 2.2 in the hundredth. SGD moves by ``eta`` times a gradient that was
clipped, and the rule's correction, which was not. Weight decay takes the parameters towards zero, by no more than
``eta lambda`` of what they are at each step.
"""

from __future__ import annotations

import math
from functools import cache

from oblivion.config import PrivacyConfig, TrainConfig
from oblivion.visit_steps import sampling_rate, steps_per_visit

_BETA1, _BETA2 = 0.9, 0.999  # every visit's AdamW has these
_ROUNDING = 2.0**-22  # relative, in fp32, per step: the parameters are rounded, and so is their change
_TAIL = 8.0  # in deviations; a Gaussian vector is longer than sqrt(size) + 8 once in 10^14 draws


def reach(
    settings: TrainConfig,
    privacy: PrivacyConfig,
    examples: int,
    size: int,
    start: float,
    correction: float = 0.0,
) -> float:
    """Return the largest L2 norm that the update of an honest visit can have.

    Parameters
    ----------
    settings : TrainConfig
        Optimizer, rate, decay, clipping, batch size and passes.
    privacy : PrivacyConfig
        With privacy of samples, SGD steps along clipped sums with noise.
    examples : int
        Rows that are trained on, at least 1.
    size : int
        The number of values that are trained.
    start : float
        L2 norm of the adapter that the visit begins from.
    correction : float, default 0.0
        L2 norm of what is added to each step's gradient.
    """
    steps = steps_per_visit(examples, settings.batch_size, settings.local_epochs)
    rate, decay = settings.learning_rate, settings.learning_rate * settings.weight_decay
    if decay > 1:
        return math.inf
    if settings.optimizer == "adamw":
        moved = rate * math.sqrt(size) * _ratios(steps)
    elif privacy.unit == "sample":
        drawn = sampling_rate(examples, settings.batch_size)
        noise = privacy.noise_multiplier * (math.sqrt(size) + _TAIL) / (drawn * examples)
        moved = rate * steps * (privacy.clip_norm * (1 / drawn + noise) + correction)
    else:
        moved = rate * steps * (settings.clip_norm + correction)
    return moved * (1 + 1e-3) + (decay + _ROUNDING) * steps * (start + moved)


@cache
def _ratios(steps: int) -> float:
    """Return ``r_1 + ... + r_steps``."""
    q = _BETA1**2 / _BETA2
    return math.fsum(
        (1 - _BETA1) / (1 - _BETA1**t) * math.sqrt((1 - q**t) / (1 - q) * (1 - _BETA2**t) / (1 - _BETA2))
        for t in range(1, steps + 1)
    )
