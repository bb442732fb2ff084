"""Representation misdirection for unlearning (Li et al., 2024, "The WMDP benchmark", section 4).

``L_f = E_t ||h(t) - c u||^2`` and ``L_r = E_t ||h(t) - h_ref(t)||^2`` with ``h`` the hidden state after block `layer`,
``u`` a fixed unit vector with random positive entries, and the adapter before forgetting as the reference. The weight
`retain_weight` is the paper's alpha.

Deviations: squared norms are means over dimensions, as in the authors' code; states are taken where answer tokens are
predicted; all adapters are trained.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from oblivion.objectives.needs import Role
from oblivion.objectives.retain import output_for
from oblivion.objectives.terms import Batch, Outputs, Term
from oblivion.parameters import check_at_least_zero
from oblivion.seeding import torch_generator


@dataclass(frozen=True, kw_only=True)
class RMU:
    """Push hidden states of the forget rows to ``c u``, and hold those of the retain rows; `seed` decides ``u``."""

    layer: int = 2
    c: float = 6.5
    forget_weight: float = 1.0
    retain_weight: float = 1.0
    seed: int = 0

    accepts_retain: ClassVar[bool] = True
    reduction: ClassVar[Literal["token", "sequence"]] = "token"

    def __post_init__(self) -> None:
        for name in ("layer", "c", "forget_weight", "retain_weight", "seed"):
            check_at_least_zero(name, getattr(self, name))

    @property
    def needs(self) -> frozenset[str]:
        """The hidden states of one block: the model's own, and for the retain rows the reference's."""
        return frozenset(f"{role}.hidden:{self.layer}" for role in ("forget", "retain", "retain.reference"))

    def loss(self, outputs: Outputs, batch: Batch) -> Mapping[Role, Term]:
        """Compute the term of each role that has rows: sums over tokens (B,), with the token counts (B,)."""
        import torch

        kind, terms = f"hidden:{self.layer}", {}
        for role, answers in batch.items():
            states = output_for(outputs, role, kind, "RMU")
            if role == "forget":
                u = torch.rand(states.shape[1], generator=torch_generator(self.seed, "rmu"))
                goal, weight = (self.c * u / u.norm()).to(states), self.forget_weight
            else:
                goal, weight = output_for(outputs, role, f"reference.{kind}", "RMU").detach(), self.retain_weight
            squares = (states - goal).square().mean(1)
            terms[role] = Term(answers.per_sequence(squares), answers.counts(squares), weight)
        return terms
