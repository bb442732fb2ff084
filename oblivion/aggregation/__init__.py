"""Server rules, one per file, and the gate that every update passes."""

from oblivion.registry import Registry

aggregators = Registry(
    "aggregator",
    {"fedadam": "oblivion.aggregation.fedadam:FedAdam", "fedavg": "oblivion.aggregation.fedavg:FedAvg"},
)
schemes = Registry("scheme", {"fedit": "oblivion.aggregation.scheme_fedit:FedIT"})
