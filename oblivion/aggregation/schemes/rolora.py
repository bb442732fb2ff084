"""RoLoRA (Chen et al., 2024, "Robust federated finetuning of foundation models via alternating minimization of LoRA").

Clients train, and the server combines, B in odd rounds and A in even ones; the other factor is the same for all. So
each round is exact, as with FFA-LoRA, and A learns too. B goes first: while it is zero, A has no gradient.

The rule sees the factor of the round alone and keeps a state for each, which moves in its own rounds only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from oblivion.aggregation.rule import Rule, RuleState
from oblivion.aggregation.scheme import LoraScheme
from oblivion.aggregation.schemes.ffa import step_half
from oblivion.models.factors import Factor, factor_of, only
from oblivion.types import ClientUpdate, GlobalState, RoundInfo


@dataclass(frozen=True, kw_only=True)
class RoLoRA(LoraScheme):
    """Train and combine B and A in turn."""

    def trained(self, round: int) -> tuple[Factor, ...]:
        """Return B for odd rounds and A for even ones."""
        return ("B",) if round % 2 else ("A",)

    def check(self, rule: Rule) -> None:
        """Refuse rules whose state does not say which tensor, and so which factor, each part of it belongs to.

        Raises
        ------
        ValueError
            The message names a scheme that works.
        """
        if not rule.state_by_tensor:
            raise ValueError(
                "keeps a rule state for each factor, and this rule does not name the parts of its state after the "
                "adapter's tensors; choose another rule, or lora.scheme = 'ffa'"
            )

    def init(self, rule: Rule, state: GlobalState) -> RuleState:
        """Make the rule's state for each factor; the names of its tensors say which factor they belong to."""
        halves = [rule.init(replace(state, adapter=only(state.adapter, (factor,)))) for factor in ("A", "B")]
        return dict(sorted({**halves[0], **halves[1]}.items()))

    def aggregate(
        self, rule: Rule, updates: Sequence[ClientUpdate], state: GlobalState, rule_state: RuleState, info: RoundInfo
    ) -> tuple[GlobalState, RuleState]:
        """Let the rule work on the factor of the round alone."""
        (factor,) = self.trained(info.round)
        own = {name: tensor for name, tensor in rule_state.items() if factor_of(name) == factor}
        other = {name: tensor for name, tensor in rule_state.items() if factor_of(name) != factor}
        after, own_after = step_half(factor, rule, updates, state, own, info)
        return after, dict(sorted({**other, **own_after}.items()))
