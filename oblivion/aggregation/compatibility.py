"""Check that a rule fits the federation: its clients' optimizer, their number, and the LoRA scheme."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from oblivion.aggregation.rule import Rule
from oblivion.aggregation.scheme import LoraScheme
from oblivion.aggregation.schemes import schemes
from oblivion.config import RunConfig
from oblivion.errors import ConfigError
from oblivion.models.factors import is_factor
from oblivion.selection import population


def check_training(rule: Rule, config: RunConfig) -> None:
    """Refuse a rule whose formula does not hold for the clients' optimizer.

    Raises
    ------
    ConfigError
        The message names the setting and what would work.
    """
    name, train = config.federation.aggregator, config.train
    if rule.plain_sgd and train.optimizer != "sgd":
        raise ConfigError(
            f"federation.aggregator = '{name}' assumes that clients take plain SGD steps at a constant rate, and "
            f"train.optimizer = '{train.optimizer}'; set train.optimizer = 'sgd' and a train.learning-rate for it, or "
            "choose a rule without that assumption, such as fedavg or fedprox"
        )
    if rule.plain_sgd and train.weight_decay:
        raise ConfigError(
            f"federation.aggregator = '{name}' assumes plain SGD steps, and train.weight-decay = {train.weight_decay}; "
            "set it to 0"
        )


def check_scheme(rule: Rule, scheme: LoraScheme, config: RunConfig) -> None:
    """Refuse a rule or ranks that the LoRA scheme cannot combine, and weights that are too coarse for its residual.

    Raises
    ------
    ConfigError
        The message says why, and what would work.
    """
    name = config.lora.scheme
    try:
        scheme.check(rule)
    except ValueError as error:
        raise ConfigError(
            f"federation.aggregator = '{config.federation.aggregator}' cannot be used with lora.scheme = '{name}': "
            f"{name} {error}"
        ) from None
    own = {client: rank for client, rank in config.federation.ranks.items() if rank != config.lora.rank}
    if own and not scheme.mixed_ranks:
        client, rank = next(iter(own.items()))
        raise ConfigError(
            f"federation.ranks.{client} = {rank}, but lora.scheme = '{name}' averages factors of one rank "
            f"(lora.rank = {config.lora.rank}); schemes that take clients of different ranks: "
            f"{', '.join(schemes.having('mixed_ranks'))}"
        )
    if scheme.state_fields and config.model.dtype == "bfloat16":
        raise ConfigError(
            f"model.dtype = 'bfloat16', but lora.scheme = '{name}' folds its residual into the base weights, where "
            "bfloat16 rounds small changes away; set model.dtype = 'float32', or choose a scheme without a residual: "
            f"{', '.join(schemes.having('state_fields', ()))}"
        )


def check_factors(scheme: LoraScheme, name: str, tensors: Iterable[str]) -> None:
    """Refuse a LoRA scheme, and ranks of clients, for an adapter that has no LoRA factors.

    Parameters
    ----------
    scheme : LoraScheme
        The scheme.
    name : str
        The name of the scheme.
    tensors : iterable of str
        The names of the adapter's tensors.

    Raises
    ------
    ConfigError
        The message names a tensor that is no factor, and the schemes that work.
    """
    other = next((tensor for tensor in sorted(tensors) if not is_factor(tensor)), "")
    if scheme.needs_factors and other:
        raise ConfigError(
            f"lora.scheme = '{name}' combines the LoRA factors A and B, and {other!r} is neither; schemes that take "
            f"any adapter: {', '.join(schemes.having('needs_factors', False))}"
        )
    if scheme.ranks and other:
        raise ConfigError(f"federation.ranks are ranks of LoRA factors, and {other!r} is none; empty federation.ranks")


def short_round(
    rule: Rule, clients: Sequence[str], joins: Mapping[str, int], per_round: int, rounds: Sequence[int]
) -> tuple[int, int, int] | None:
    """Find the first of some rounds that has clients, but fewer than the rule needs.

    Parameters
    ----------
    rule : Rule
        The rule, with its parameters.
    clients : sequence of str
        The clients that take part.
    joins : mapping of str to int
        The first round of each client that joins late.
    per_round : int
        The number of clients that are selected.
    rounds : sequence of int
        The rounds to look at, in order.

    Returns
    -------
    tuple of int or None
        The round, its number of clients and the number that the rule needs; None if every round has enough.
    """
    for number in rounds:
        there = min(per_round, len(population(clients, joins, number)))
        needed = int(rule.needed())
        if 0 < there < needed:
            return number, there, needed
    return None


def check_number(rule: Rule, config: RunConfig, clients: Sequence[str]) -> None:
    """Refuse a rule that needs more clients than some round of the learning has.

    Raises
    ------
    ConfigError
        The message names the round, both numbers and what would work.
    """
    federation = config.federation
    rounds = range(1, federation.rounds + 1)
    short = short_round(rule, clients, federation.joins, federation.clients_per_round, rounds)
    if short:
        number, there, needed = short
        raise ConfigError(
            f"federation.aggregator = '{federation.aggregator}' needs at least {needed} clients in a round, and round "
            f"{number} has {there}; ask more (federation.clients-per-round, federation.clients, federation.joins), "
            "or expect fewer hostile ones (federation.parameters)"
        )
