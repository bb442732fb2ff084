"""Server rules, one per file, and the gate that every update passes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from oblivion.config import RunConfig
from oblivion.parameters import build
from oblivion.registry import Registry

if TYPE_CHECKING:
    from oblivion.aggregation.rule import Aggregator, LoraScheme

aggregators = Registry(
    "aggregator",
    {
        "bulyan": "oblivion.aggregation.bulyan:Bulyan",
        "clipped_mean": "oblivion.aggregation.clipped_mean:ClippedMean",
        "fedadagrad": "oblivion.aggregation.fedadagrad:FedAdagrad",
        "fedadam": "oblivion.aggregation.fedadam:FedAdam",
        "fedavg": "oblivion.aggregation.fedavg:FedAvg",
        "fedavgm": "oblivion.aggregation.fedavgm:FedAvgM",
        "feddyn": "oblivion.aggregation.feddyn:FedDyn",
        "fednova": "oblivion.aggregation.fednova:FedNova",
        "fedprox": "oblivion.aggregation.fedprox:FedProx",
        "fedyogi": "oblivion.aggregation.fedyogi:FedYogi",
        "flower": "strategies.flower_rule:FlowerRule",
        "geometric_median": "oblivion.aggregation.geometric_median:GeometricMedian",
        "krum": "oblivion.aggregation.krum:Krum",
        "median": "oblivion.aggregation.median:Median",
        "multi_krum": "oblivion.aggregation.multi_krum:MultiKrum",
        "scaffold": "oblivion.aggregation.scaffold:Scaffold",
        "trimmed_mean": "oblivion.aggregation.trimmed_mean:TrimmedMean",
    },
    needs=("init", "apply", "min_clients", "state_fields", "needs_client_state", "plain_sgd", "proximal_mu"),
)
schemes = Registry(
    "scheme",
    {
        "fedex": "oblivion.aggregation.scheme_fedex:FedEx",
        "fedit": "oblivion.aggregation.scheme_fedit:FedIT",
        "ffa": "oblivion.aggregation.scheme_ffa:FFA",
        "flexlora": "oblivion.aggregation.scheme_flexlora:FlexLoRA",
        "flora": "oblivion.aggregation.scheme_flora:FLoRA",
        "rolora": "oblivion.aggregation.scheme_rolora:RoLoRA",
    },
    needs=("ranks", "trained", "check", "init", "combine", "space", "state_fields", "mixed_ranks"),
)


def rule_of(config: RunConfig) -> Aggregator:
    """The server rule of a run, with its parameters.

    Raises
    ------
    ConfigError
        If a parameter is unknown, or a value is refused.
    """
    federation = config.federation
    rule: Aggregator = build(aggregators, federation.aggregator, federation.parameters, "federation.parameters")
    return rule


def scheme_of(config: RunConfig) -> LoraScheme:
    """The LoRA scheme of a run, with the ranks of its clients."""
    scheme: LoraScheme = build(schemes, config.lora.scheme, {"ranks": config.federation.ranks}, "lora.scheme")
    return scheme
