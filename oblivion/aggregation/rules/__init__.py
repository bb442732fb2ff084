"""Server rules, one per file."""

from oblivion.registry import Registry

aggregators = Registry(
    "aggregator",
    {
        "bulyan": "oblivion.aggregation.rules.bulyan:Bulyan",
        "clipped_mean": "oblivion.aggregation.rules.clipped_mean:ClippedMean",
        "fedadagrad": "oblivion.aggregation.rules.fedadagrad:FedAdagrad",
        "fedadam": "oblivion.aggregation.rules.fedadam:FedAdam",
        "fedavg": "oblivion.aggregation.rules.fedavg:FedAvg",
        "fedavgm": "oblivion.aggregation.rules.fedavgm:FedAvgM",
        "feddyn": "oblivion.aggregation.rules.feddyn:FedDyn",
        "fednova": "oblivion.aggregation.rules.fednova:FedNova",
        "fedprox": "oblivion.aggregation.rules.fedprox:FedProx",
        "fedyogi": "oblivion.aggregation.rules.fedyogi:FedYogi",
        "flower": "strategies.flower_rule:FlowerRule",
        "geometric_median": "oblivion.aggregation.rules.geometric_median:GeometricMedian",
        "krum": "oblivion.aggregation.rules.krum:Krum",
        "median": "oblivion.aggregation.rules.median:Median",
        "multi_krum": "oblivion.aggregation.rules.multi_krum:MultiKrum",
        "scaffold": "oblivion.aggregation.rules.scaffold:Scaffold",
        "trimmed_mean": "oblivion.aggregation.rules.trimmed_mean:TrimmedMean",
    },
    needs=(
        "init",
        "step",
        "needed",
        "proximal_mu",
        "state_fields",
        "of_weights",
        "of_mean",
        "needs_client_state",
        "state_by_tensor",
        "plain_sgd",
    ),
)
