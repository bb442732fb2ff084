"""Server rules, one per file, and the gate that every update passes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from oblivion.aggregation.rules import aggregators
from oblivion.aggregation.schemes import schemes
from oblivion.config import RunConfig
from oblivion.parameters import build

if TYPE_CHECKING:
    from oblivion.aggregation.rule import Rule
    from oblivion.aggregation.scheme import LoraScheme


def rule_of(config: RunConfig) -> Rule:
    """Make the server rule of a run, with its parameters.

    Raises
    ------
    ConfigError
        If a parameter is unknown, or a value is refused.
    """
    federation = config.federation
    rule: Rule = build(aggregators, federation.aggregator, federation.parameters, "federation.parameters")
    return rule


def scheme_of(config: RunConfig) -> LoraScheme:
    """Make the LoRA scheme of a run, with the ranks of its clients."""
    scheme: LoraScheme = build(schemes, config.lora.scheme, {"ranks": config.federation.ranks}, "lora.scheme")
    return scheme
