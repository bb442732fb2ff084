"""Gradient difference (Liu et al., 2022, "Continual learning and private unlearning").

``L = -forget_weight * NLL(forget) + retain_weight * L_retain``, both means over labelled tokens. The retain
loss is the NLL, or the KL divergence to the model before forgetting (TOFU's KL minimisation).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from oblivion.objectives.grad_ascent import ascent_term
from oblivion.objectives.retain import ForgetAndRetain
from oblivion.objectives.terms import Batch, Outputs, Role, Term


@dataclass(frozen=True, kw_only=True)
class GradDiff(ForgetAndRetain):
    """Ascend the loss of the forget rows while descending that of rows to be kept.

    Attributes
    ----------
    forget_weight, retain_weight, retain_loss
        As in `ForgetAndRetain`.
    """

    own_needs: ClassVar[frozenset[str]] = frozenset({"retain"})
    reduction: ClassVar[Literal["token", "sequence"]] = "token"

    def loss(self, outputs: Outputs, batch: Batch, reference_outputs: Outputs) -> Mapping[Role, Term]:
        """Compute both terms.

        Parameters
        ----------
        outputs : mapping of role to Tensor (T, V)
            Logits of the ``forget`` and ``retain`` rows.
        batch : mapping of role to Answers
            Their labels.
        reference_outputs : mapping of role to Tensor (T, V)
            Used for ``retain`` where `retain_loss` is ``"kl"``.

        Returns
        -------
        mapping
            ``forget`` and ``retain``: sums per sequence (B,) with token counts (B,).

        Raises
        ------
        ValueError
            If there are no retain rows, or the reference is missing where it is needed.
        """
        forget: Term | None = None
        if "forget" in outputs:
            forget = ascent_term(outputs, batch, self.forget_weight)
        return self.with_retain(forget, outputs, batch, reference_outputs)
