"""The retain terms that forgetting objectives are combined with: NLL, and KL to the model before forgetting.

Sources: GradDiff (Liu et al., 2022; Maini et al., 2024, TOFU) for the NLL term; the KL-minimisation
baseline of Maini et al. (2024) for ``KL(p_reference || p_current)``.

Deviation: OpenUnlearning divides the KL by every position of the padded batch, prompt and padding included.
Here it is the mean over the labelled positions, those whose next token is an answer token. The two differ
by a factor that depends on padding.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from oblivion.objectives.needs import Role
from oblivion.objectives.terms import Batch, Outputs, Term, token_nll
from oblivion.parameters import check_at_least_zero, check_choice

if TYPE_CHECKING:
    from torch import Tensor


def token_kl(logits: Tensor, reference: Tensor) -> Tensor:
    """Compute the Kullback-Leibler divergence of the current from the reference distribution, per token.

    Parameters
    ----------
    logits, reference : Tensor (T, V)
        Scores of the current and of the reference model. The reference is a constant: no gradient goes into
        it.

    Returns
    -------
    Tensor (T,)
        ``sum_v p_ref(v) (log p_ref(v) - log p_cur(v))``, nats.
    """
    import torch

    current = torch.log_softmax(logits, dim=-1)
    target = torch.log_softmax(reference.detach(), dim=-1)
    return torch.nn.functional.kl_div(current, target, reduction="none", log_target=True).sum(-1)


def output_for(outputs: Outputs, role: Role, kind: str, asker: str) -> Tensor:
    """Return one output of a role.

    Raises
    ------
    ValueError
        If it is not there.
    """
    if kind not in outputs[role]:
        raise ValueError(f"{asker} needs the output '{kind}' for the {role} rows; it was not made")
    return outputs[role][kind]


def lost_likelihood(outputs: Outputs, batch: Batch, role: Role, asker: str) -> Tensor:
    """Return ``log(p_ref(y|x) / p(y|x))`` of every sequence of a role, (B,): a sum over its tokens, in nats.

    Raises
    ------
    ValueError
        If the logits of the reference are not there.
    """
    answers = batch[role]
    nll = token_nll(outputs[role]["logits"], answers)
    reference = token_nll(output_for(outputs, role, "reference.logits", asker).detach(), answers)
    return answers.per_sequence(nll - reference)


@dataclass(frozen=True, kw_only=True)
class ForgetAndRetain(abc.ABC):
    """Parameters and retain term of the objectives that forget some rows and may keep others.

    Attributes
    ----------
    forget_weight, retain_weight : float, default 1.0
        Weights of the two terms (gamma and alpha in OpenUnlearning), at least 0.
    retain_loss : str, default "nll"
        ``"nll"``, or ``"kl"``, which needs the reference adapter.
    """

    forget_weight: float = 1.0
    retain_weight: float = 1.0
    retain_loss: Literal["nll", "kl"] = "nll"

    accepts_retain: ClassVar[bool] = True
    own_needs: ClassVar[frozenset[str]] = frozenset()

    def __post_init__(self) -> None:
        check_at_least_zero("forget_weight", self.forget_weight)
        check_at_least_zero("retain_weight", self.retain_weight)
        check_choice("retain_loss", self.retain_loss, ("nll", "kl"))

    @property
    def needs(self) -> frozenset[str]:
        """What the objective needs: its own needs and the logits of the retain rows; the KL adds the reference's."""
        reference = {"retain.reference.logits"} if self.retain_loss == "kl" else set()
        return self.own_needs | {"retain.logits"} | reference

    @abc.abstractmethod
    def forget_term(self, outputs: Outputs, batch: Batch) -> Term:
        """Compute the term that forgets, from the rows in role ``forget``; each objective has its own."""

    def loss(self, outputs: Outputs, batch: Batch) -> Mapping[Role, Term]:
        """Compute the forget term, and the retain term where there are retain rows.

        Parameters
        ----------
        outputs : mapping of role to kind to Tensor
            What the objective needs of the ``forget`` rows and, where there are any, of the ``retain`` rows.
        batch : mapping of role to Answers
            The labels of these rows.

        Returns
        -------
        mapping of role to Term
            ``forget``: sums (B,) with counts of tokens, or of ones where the reduction is per sequence (zero for a
            sequence without labels). ``retain``: sums (B,) with token counts.

        Raises
        ------
        ValueError
            If rows or outputs that the objective needs are missing.
        """
        name = type(self).__name__
        if "forget" not in outputs:
            raise ValueError(f"{name} works on rows in role 'forget', and the batch has none")
        terms: dict[Role, Term] = {"forget": self.forget_term(outputs, batch)}
        if "retain" in outputs:
            terms["retain"] = self.retain_term(outputs, batch)
        elif "retain" in self.needs:
            raise ValueError(f"{name} needs retain rows, and the batch has none; give the client rows to keep")
        return terms

    def retain_term(self, outputs: Outputs, batch: Batch) -> Term:
        """Compute the term that keeps the rows in role ``retain``."""
        logits, answers = outputs["retain"]["logits"], batch["retain"]
        if self.retain_loss == "kl":
            asker = f"{type(self).__name__} with retain_loss 'kl'"
            values = token_kl(logits, output_for(outputs, "retain", "reference.logits", asker))
        else:
            values = token_nll(logits, answers)
        return Term(answers.per_sequence(values), answers.counts(values), self.retain_weight)


def per_sequence_term(values: Tensor, tokens: Tensor, weight: float) -> Term:
    """Make a term of one value per sequence, (B,); a sequence without labels (`tokens` 0) does not count."""
    counts = (tokens > 0).to(values.dtype)
    return Term(values * counts, counts, weight)
