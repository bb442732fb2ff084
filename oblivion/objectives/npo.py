"""Negative preference optimisation (Zhang et al., 2024, "Negative preference optimization", equation 3).

``L_f = -(2/beta) E_i[log sigmoid(-beta log(p(y_i|x_i) / p_ref(y_i|x_i)))]``. The log-ratio is a sum over
the tokens of a sequence, never a mean: ``beta = 0.1`` is meant for sums over some tens of tokens. The
expectation is over sequences. The reference is the adapter before forgetting. For ``beta -> 0`` the
gradient is that of gradient ascent on the summed NLL; where a sequence is already forgotten it goes to
zero, which gradient ascent's does not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from oblivion.objectives.retain import ForgetAndRetain, lost_likelihood, per_sequence_term
from oblivion.objectives.terms import Batch, Outputs, Term
from oblivion.parameters import check_positive


@dataclass(frozen=True, kw_only=True)
class NPO(ForgetAndRetain):
    """Push the forget rows' likelihood below the reference model's, with a bounded gradient.

    Attributes
    ----------
    beta : float, default 0.1
        Inverse temperature per summed nat, above 0.
    forget_weight, retain_weight, retain_loss
        As in `ForgetAndRetain`.
    """

    beta: float = 0.1

    own_needs: ClassVar[frozenset[str]] = frozenset({"forget.logits", "forget.reference.logits"})
    reduction: ClassVar[Literal["token", "sequence"]] = "sequence"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive("beta", self.beta)

    def forget_term(self, outputs: Outputs, batch: Batch) -> Term:
        """Compute a value per sequence (B,), from the summed log-ratio to the reference."""
        import torch

        lost = lost_likelihood(outputs, batch, "forget", type(self).__name__)
        values = -(2 / self.beta) * torch.nn.functional.logsigmoid(self.beta * lost)
        return per_sequence_term(values, batch["forget"].counts(lost), self.forget_weight)
