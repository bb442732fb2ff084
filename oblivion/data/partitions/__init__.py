"""Ways to deal rows to simulated clients, one per file."""

from oblivion.registry import Registry

partitions = Registry(
    "partition",
    {
        "dirichlet": "oblivion.data.partitions.dirichlet:partition",
        "iid": "oblivion.data.partitions.iid:partition",
        "natural": "oblivion.data.partitions.natural:partition",
        "shards": "oblivion.data.partitions.shards:partition",
    },
)
