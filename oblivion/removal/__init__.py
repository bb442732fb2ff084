"""Federated forgetting procedures, one per file: they plan phases, which the federation runs."""

from oblivion.registry import Registry

removals = Registry(
    "removal",
    {
        "exclude": "oblivion.removal.exclude:Exclude",
        "federaser": "oblivion.removal.federaser:FedEraser",
        "local": "oblivion.removal.local:Local",
        "msa": "oblivion.removal.msa:Msa",
        "puf": "oblivion.removal.puf:Puf",
        "retrain": "oblivion.removal.retrain:Retrain",
        "rollback": "oblivion.removal.rollback:Rollback",
    },
    needs=("plan", "requires"),
)
