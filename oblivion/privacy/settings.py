"""Check whether the settings of a run can have the privacy that they ask for."""

from __future__ import annotations

from oblivion.aggregation import rule_of, scheme_of
from oblivion.aggregation.rules import aggregators
from oblivion.aggregation.schemes import schemes
from oblivion.config import RunConfig
from oblivion.errors import ConfigError


def check_privacy(config: RunConfig) -> None:
    """Reject settings that are incompatible with the requested privacy unit.

    Raises
    ------
    ConfigError
        The message says why, and what would work.
    """
    unit, rule, scheme = config.privacy.unit, config.federation.aggregator, config.lora.scheme
    if unit == "sample" and config.lora.dropout:
        raise ConfigError(
            f"privacy.unit = 'sample' needs lora.dropout = 0, and it is {config.lora.dropout}: its masks would come "
            "from the run's seed, and a sample's gradient would not be a function of the sample"
        )
    if unit == "sample" and config.federation.ranks:
        raise ConfigError(
            "privacy.unit = 'sample' puts noise on every value of the adapter, so federation.ranks cannot hold; empty "
            "it, or use privacy.unit = 'client'"
        )
    if unit == "client" and not rule_of(config).of_mean:
        raise ConfigError(
            f"privacy.unit = 'client' noises the mean of the updates, and federation.aggregator = '{rule}' is not a "
            f"function of the mean alone; choose one of {', '.join(aggregators.having('of_mean'))}, or "
            "privacy.unit = 'sample', which works with every rule"
        )
    if unit == "client" and scheme_of(config).of_products:
        raise ConfigError(
            f"privacy.unit = 'client' noises the mean of the factors, and lora.scheme = '{scheme}' combines products; "
            f"choose one of {', '.join(schemes.having('of_products', False))}"
        )
