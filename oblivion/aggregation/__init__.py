"""Server rules, one per file, and the gate that every update passes."""

from oblivion.registry import Registry

aggregators = Registry(
    "aggregator",
    {
        "bulyan": "oblivion.aggregation.bulyan:Bulyan",
        "clipped_mean": "oblivion.aggregation.clipped_mean:ClippedMean",
        "fedadagrad": "oblivion.aggregation.fedadagrad:FedAdagrad",
        "fedadam": "oblivion.aggregation.fedadam:FedAdam",
        "fedavg": "oblivion.aggregation.fedavg:FedAvg",
        "fedavgm": "oblivion.aggregation.fedavgm:FedAvgM",
        "fedyogi": "oblivion.aggregation.fedyogi:FedYogi",
        "geometric_median": "oblivion.aggregation.geometric_median:GeometricMedian",
        "krum": "oblivion.aggregation.krum:Krum",
        "median": "oblivion.aggregation.median:Median",
        "multi_krum": "oblivion.aggregation.multi_krum:MultiKrum",
        "trimmed_mean": "oblivion.aggregation.trimmed_mean:TrimmedMean",
    },
)
schemes = Registry("scheme", {"fedit": "oblivion.aggregation.scheme_fedit:FedIT"})
