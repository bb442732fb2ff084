"""RoLoRA (Chen et al., 2024, "Robust federated finetuning of foundation models via alternating minimization of LoRA").

Clients train and the server combines B in odd rounds and A in even ones, the other factor being the same for all. So
each round is exact, as with FFA-LoRA, and A learns too. B goes first: while it is zero, A has no gradient.

The rule sees the factor of the round alone and keeps a state for each, which moves in its own rounds only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

from oblivion.aggregation.rule import Aggregator, RuleState
from oblivion.aggregation.schemes.ffa import combine_half
from oblivion.models.factors import Factor, factor_of, only
from oblivion.types import ClientUpdate, GlobalState, RoundInfo


@dataclass(frozen=True, kw_only=True)
class RoLoRA:
    """Train and combine B and A in turn."""

    ranks: Mapping[str, int] = field(default_factory=dict)

    space: ClassVar[Literal["ab"]] = "ab"
    state_fields: ClassVar[tuple[str, ...]] = ()
    mixed_ranks: ClassVar[bool] = False

    def trained(self, round: int) -> tuple[Factor, ...]:
        """B in odd rounds, A in even ones."""
        return ("B",) if round % 2 else ("A",)

    def check(self, rule: Aggregator) -> None:
        """Refuse Flower's strategies: what they keep has no names by which it could be told which factor it is of.

        Raises
        ------
        ValueError
            Naming rules that work.
        """
        if type(rule).__name__ == "FlowerRule":
            raise ValueError(
                "keeps a state for each factor, and what a Flower strategy keeps cannot be told apart; choose "
                "this package's own rule, or lora.scheme = 'ffa'"
            )

    def init(self, rule: Aggregator, state: GlobalState) -> RuleState:
        """The rule's state for each factor; its tensors' names say which one they are of."""
        halves = [rule.init(replace(state, adapter=only(state.adapter, (factor,)))) for factor in ("A", "B")]
        return dict(sorted({**halves[0], **halves[1]}.items()))

    def combine(
        self,
        rule: Aggregator,
        updates: Sequence[ClientUpdate],
        state: GlobalState,
        rule_state: RuleState,
        info: RoundInfo,
    ) -> tuple[GlobalState, RuleState]:
        """Let the rule work on the factor of the round alone."""
        if not updates:
            return state, rule_state
        (factor,) = self.trained(info.round)
        own = {name: tensor for name, tensor in rule_state.items() if factor_of(name) == factor}
        other = {name: tensor for name, tensor in rule_state.items() if factor_of(name) != factor}
        after, own_after = combine_half(factor, rule, updates, state, own, info)
        return after, dict(sorted({**other, **own_after}.items()))
