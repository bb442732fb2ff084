"""SHRED: self-distillation with logit demotion (Hu et al., 2026, arXiv 2605.07482, its two stages in one pass).

In every sequence, the `share` of answer tokens that the reference finds least likely are forget positions. The target
is the reference's distribution; at forget positions the true token's logit is lowered until its probability is at most
`demoted`. ``L = E_t KL(target_t || p_t)`` over all positions. No rows to keep are needed: the likely tokens carry the
language and nothing of their owner, and are the anchor.

Deviations: the KL is over the whole vocabulary, where the paper keeps the K largest entries, because nothing has to be
stored here. The default 0.01 is that of a published model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from oblivion.objectives.needs import Role
from oblivion.objectives.retain import output_for, token_kl
from oblivion.objectives.terms import Answers, Batch, Outputs, Term
from oblivion.parameters import check_decay, check_positive

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Shred:
    """Make the least likely tokens of the forget rows unlikely, and keep all else of these rows as it was."""

    share: float = 0.15
    demoted: float = 0.01

    needs: ClassVar[frozenset[str]] = frozenset({"forget.logits", "forget.reference.logits"})
    accepts_retain: ClassVar[bool] = False
    reduction: ClassVar[Literal["token", "sequence"]] = "token"

    def __post_init__(self) -> None:
        check_positive("share", self.share, 1.0)
        check_positive("demoted", self.demoted)
        check_decay("demoted", self.demoted)

    def loss(self, outputs: Outputs, batch: Batch) -> Mapping[Role, Term]:
        """Compute the one term: divergences summed per sequence (B,), with the token counts (B,)."""
        answers = batch["forget"]
        target = output_for(outputs, "forget", "reference.logits", "SHRED").detach().log_softmax(-1)
        own = target.gather(1, answers.labels[:, None])[:, 0]
        lowered = (own.expm1().neg().clamp(min=1e-30) * self.demoted / (1 - self.demoted)).log()
        goal = own.minimum(lowered).where(_least_likely(own, answers, self.share), own)
        values = token_kl(outputs["forget"]["logits"], target.scatter(1, answers.labels[:, None], goal[:, None]))
        return {"forget": Term(answers.per_sequence(values), answers.counts(values))}


def _least_likely(own: Tensor, answers: Answers, share: float) -> Tensor:
    counts = answers.counts(own).double()
    order = own.argsort(stable=True)
    order = order[answers.rows[order].argsort(stable=True)]
    rank = order.argsort() - (counts.cumsum(0) - counts)[answers.rows]
    return rank < (share * counts - 1e-9).ceil()[answers.rows]
