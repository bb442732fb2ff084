"""Simple negative preference optimisation (Fan et al., 2024, "Simplicity prevails", the SimNPO loss).

``L_f = -(2/beta) E_i[log sigmoid(beta (mNLL_i - delta))]`` where ``mNLL_i`` is the mean NLL over the tokens
of sequence i. There is no reference model.

Deviation: the margin stands inside beta, as in OpenUnlearning. The paper writes ``log sigmoid(beta mNLL -
gamma)``, so the paper's ``gamma`` is ``beta * delta`` here. What OpenUnlearning calls ``gamma`` (0.125) is
another thing: the weight of the forget term, here `forget_weight`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from oblivion.objectives.retain import ForgetAndRetain, per_sequence_term
from oblivion.objectives.terms import Batch, Outputs, Term, token_nll
from oblivion.parameters import check_finite, check_positive


@dataclass(frozen=True, kw_only=True)
class SimNPO(ForgetAndRetain):
    """Push the forget rows' mean NLL per token above a margin, without a reference model.

    Attributes
    ----------
    beta : float, default 4.5
        Inverse temperature per mean nat, above 0.
    delta : float, default 0.0
        Margin in nats per token; the paper's ``gamma`` divided by ``beta``.
    forget_weight, retain_weight, retain_loss
        As in `ForgetAndRetain`; OpenUnlearning uses ``forget_weight = 0.125``.
    """

    beta: float = 4.5
    delta: float = 0.0

    own_needs: ClassVar[frozenset[str]] = frozenset({"forget.logits"})
    reduction: ClassVar[Literal["token", "sequence"]] = "sequence"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive("beta", self.beta)
        check_finite("delta", self.delta)

    def forget_term(self, outputs: Outputs, batch: Batch) -> Term:
        """Compute a value per sequence (B,), from its mean NLL per token."""
        import torch

        answers = batch["forget"]
        nll = token_nll(outputs["forget"]["logits"], answers)
        tokens = answers.counts(nll)
        mean = answers.per_sequence(nll) / tokens.clamp(min=1)
        values = -(2 / self.beta) * torch.nn.functional.logsigmoid(self.beta * (mean - self.delta))
        return per_sequence_term(values, tokens, self.forget_weight)
