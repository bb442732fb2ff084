"""Gradient difference (Liu et al., 2022, "Continual learning and private unlearning").

``L = -forget_weight * NLL(forget) + retain_weight * L_retain``, both means over labelled tokens. The retain
loss is the NLL, or the KL divergence to the model before forgetting (TOFU's KL minimisation).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from oblivion.objectives.grad_ascent import ascent_term
from oblivion.objectives.retain import ForgetAndRetain
from oblivion.objectives.terms import Batch, Outputs, Term


@dataclass(frozen=True, kw_only=True)
class GradDiff(ForgetAndRetain):
    """Ascend the loss of the forget rows while descending that of rows to be kept.

    Attributes
    ----------
    forget_weight, retain_weight, retain_loss
        As in `ForgetAndRetain`.
    """

    own_needs: ClassVar[frozenset[str]] = frozenset({"forget.logits", "retain"})
    reduction: ClassVar[Literal["token", "sequence"]] = "token"

    def forget_term(self, outputs: Outputs, batch: Batch) -> Term:
        """Compute minus the NLL, per token."""
        return ascent_term(outputs, batch, self.forget_weight)
