"""BLUR-NPO: forgetting first, keeping only where it does not interfere (Reisizadeh et al., 2026, "BLUR", EACL).

The bi-level problem minimises the retain loss among the minimisers of the forget loss, here that of `npo`. A step goes
along ``g_r + (gamma - <g_r, g_f> / <g_f, g_f>) g_f`` (the update of BLUR, arXiv 2506.08164, also in the authors' code):
the retain gradient without its part along the forget gradient, so that ``gamma`` alone decides how fast the model
forgets.

Deviations: each client projects its own two gradients. The authors' code takes NPO's ratio from logits; here it is that
of log-probabilities, as in the paper of NPO.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from oblivion.objectives.npo import NPO
from oblivion.parameters import check_at_least_zero

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class BlurNPO(NPO):
    """Forget as `npo` does, and keep along what is orthogonal to forgetting.

    Attributes
    ----------
    gamma : float, default 1.0
        How fast the model forgets: the step's part along the forget gradient, in units of that gradient; at least 0.
    beta, forget_weight, retain_weight, retain_loss
        As in `NPO`.
    """

    gamma: float = 1.0

    own_needs: ClassVar[frozenset[str]] = NPO.own_needs | {"retain"}

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least_zero("gamma", self.gamma)

    def combine_gradients(self, forget: Tensor, retain: Tensor) -> Tensor:
        """Return the gradient of the step, (clients, values), from those of the two terms."""
        import torch

        squares = forget.square().sum(1, keepdim=True).clamp(min=torch.finfo(forget.dtype).tiny)
        overlap = (forget * retain).sum(1, keepdim=True) / squares
        return retain + (self.gamma - overlap) * forget
