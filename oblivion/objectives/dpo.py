"""Direct preference optimisation towards another answer (Rafailov et al., 2023, "Direct preference optimization").

``L_f = -(2/beta) E_i[log sigmoid(beta (log(p(a_i|x_i) / p_ref(a_i|x_i)) - log(p(y_i|x_i) / p_ref(y_i|x_i))))]`` (their
equation 7). The forgotten answer ``y_i`` is the rejected one. The chosen one, ``a_i``, is a refusal (the preference
optimisation of Maini et al., 2024, TOFU) or the sample's own alternate (AltPO, Mekala et al., 2024). Log-ratios are
sums over tokens.

Deviation: the factor ``2/beta``, as in OpenUnlearning. Without the chosen answer the loss is then that of `npo`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from oblivion.objectives.retain import ForgetAndRetain, lost_likelihood, per_sequence_term
from oblivion.objectives.terms import Batch, Outputs, Term
from oblivion.parameters import check_positive


@dataclass(frozen=True, kw_only=True)
class DPO(ForgetAndRetain):
    """Prefer a refusal, or another answer, over the answer that is to be forgotten.

    Attributes
    ----------
    beta : float, default 0.1
        Inverse temperature per summed nat, above 0.
    forget_weight, retain_weight, retain_loss
        As in `ForgetAndRetain`.
    """

    beta: float = 0.1

    own_needs: ClassVar[frozenset[str]] = frozenset(
        f"{role}.{kind}" for role in ("forget", "alternate") for kind in ("logits", "reference.logits")
    )
    reduction: ClassVar[Literal["token", "sequence"]] = "sequence"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive("beta", self.beta)

    def forget_term(self, outputs: Outputs, batch: Batch) -> Term:
        """Compute a value per sequence (B,), from how much more likely the alternate became than the answer."""
        import torch

        lost = lost_likelihood(outputs, batch, "forget", "DPO")
        margin = lost - lost_likelihood(outputs, batch, "alternate", "DPO")
        values = -(2 / self.beta) * torch.nn.functional.logsigmoid(self.beta * margin)
        return per_sequence_term(values, batch["forget"].counts(lost), self.forget_weight)
