"""Federated forgetting procedures, one per file: they plan phases, the server carries them out."""

from oblivion.config import ForgetConfig
from oblivion.parameters import build
from oblivion.registry import Registry
from oblivion.removal.plan import Removal

removals = Registry(
    "removal",
    {
        "exclude": "oblivion.removal.exclude:Exclude",
        "local": "oblivion.removal.local:Local",
        "retrain": "oblivion.removal.retrain:Retrain",
        "rollback": "oblivion.removal.rollback:Rollback",
    },
    needs=("plan", "requires"),
)


def removal_from(method: str, forget: ForgetConfig) -> Removal:
    """Make a registered removal; it takes from the ``forget`` settings those that it has parameters for."""
    import inspect

    known = inspect.signature(removals.get(method)).parameters
    settings = {name: value for name, value in forget.model_dump().items() if name in known}
    removal: Removal = build(removals, method, settings, "forget")
    return removal
