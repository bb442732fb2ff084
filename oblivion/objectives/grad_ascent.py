"""Gradient ascent (Jang et al., 2023, "Knowledge unlearning for mitigating privacy risks in LMs").

``L_f = (1/T) sum_t log p(y_t | x, y_<t)``, the negated token NLL. As in OpenUnlearning the mean is over the
tokens of the whole batch. The loss has no lower bound: run it long enough and the model is destroyed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from oblivion.objectives.needs import Role
from oblivion.objectives.terms import Batch, Outputs, Term, token_nll
from oblivion.parameters import check_at_least_zero


def ascent_term(outputs: Outputs, batch: Batch, weight: float) -> Term:
    """Compute the negated NLL of the forget rows: sums (B,) in nats, and token counts (B,)."""
    answers = batch["forget"]
    nll = token_nll(outputs["forget"]["logits"], answers)
    return Term(answers.per_sequence(-nll), answers.counts(nll), weight)


@dataclass(frozen=True, kw_only=True)
class GradAscent:
    """Forget by ascending the loss of the forget rows; unbounded, and nothing is kept on purpose.

    Attributes
    ----------
    forget_weight : float, default 1.0
        Weight of the term, at least 0.
    """

    forget_weight: float = 1.0

    needs: ClassVar[frozenset[str]] = frozenset({"forget.logits"})
    accepts_retain: ClassVar[bool] = False
    reduction: ClassVar[Literal["token", "sequence"]] = "token"

    def __post_init__(self) -> None:
        check_at_least_zero("forget_weight", self.forget_weight)

    def loss(self, outputs: Outputs, batch: Batch) -> Mapping[Role, Term]:
        """Compute the one term; retain rows are ignored.

        Parameters
        ----------
        outputs : mapping of role to kind to Tensor
            ``logits`` (T, V) of the ``forget`` rows.
        batch : mapping of role to Answers
            The labels of these rows.

        Returns
        -------
        mapping
            ``forget``: minus the NLL summed per sequence (B,), with the token counts (B,).

        Raises
        ------
        ValueError
            If there are no forget rows.
        """
        if "forget" not in outputs:
            raise ValueError("GradAscent works on rows in role 'forget', and the batch has none")
        return {"forget": ascent_term(outputs, batch, self.forget_weight)}
