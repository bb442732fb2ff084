"""Learning: next-token prediction of the answers, as in supervised fine-tuning.

``L = -(1/T) sum_t log p(y_t | x, y_<t)`` over the T labelled tokens of a batch (answer tokens and EOS); the
prompt is not learned. The mean is over tokens, not over sequences, so long answers weigh more.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from oblivion.objectives.needs import Role
from oblivion.objectives.terms import Batch, Outputs, Term, token_nll


@dataclass(frozen=True, kw_only=True)
class LanguageModel:
    """Learn the answers: negative log-likelihood per labelled token of the rows in role ``retain``."""

    needs: ClassVar[frozenset[str]] = frozenset({"retain", "retain.logits"})
    accepts_retain: ClassVar[bool] = True
    reduction: ClassVar[Literal["token", "sequence"]] = "token"

    def loss(self, outputs: Outputs, batch: Batch) -> Mapping[Role, Term]:
        """Compute the one term.

        Parameters
        ----------
        outputs : mapping of role to kind to Tensor
            ``logits`` (T, V) of the ``retain`` rows.
        batch : mapping of role to Answers
            The labels of these rows.

        Returns
        -------
        mapping
            ``retain``: NLL summed per sequence (B,), in nats, with the token counts (B,).

        Raises
        ------
        ValueError
            If there are no rows in role ``retain``.
        """
        if "retain" not in outputs:
            raise ValueError("LanguageModel learns the rows in role 'retain', and the batch has none")
        answers = batch["retain"]
        nll = token_nll(outputs["retain"]["logits"], answers)
        return {"retain": Term(answers.per_sequence(nll), answers.counts(nll))}
