"""LoRA schemes, one per file: in which space adapters are combined."""

from oblivion.registry import Registry

schemes = Registry(
    "scheme",
    {
        "fedex": "oblivion.aggregation.schemes.fedex:FedEx",
        "fedit": "oblivion.aggregation.schemes.fedit:FedIT",
        "ffa": "oblivion.aggregation.schemes.ffa:FFA",
        "flexlora": "oblivion.aggregation.schemes.flexlora:FlexLoRA",
        "flora": "oblivion.aggregation.schemes.flora:FLoRA",
        "rolora": "oblivion.aggregation.schemes.rolora:RoLoRA",
    },
    needs=(
        "ranks",
        "trained",
        "check",
        "init",
        "combine",
        "state_fields",
        "mixed_ranks",
        "of_products",
        "needs_factors",
    ),
)
