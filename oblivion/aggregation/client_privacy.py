"""Client-level differential privacy on the server (McMahan et al., 2018, "... private recurrent language models").

The unit of privacy is a client's whole part in a round. Each update is shortened to an L2 norm of at most C, Gaussian
noise of ``sigma C`` is added to their sum, and the result is divided by the number of clients that a round asks,
whoever answered::

    mean = (sum_k min(1, C / ||delta_k||) delta_k + N(0, (sigma C)^2 I)) / m

The rule then makes its step of this mean, which is further processing and costs nothing. Clients count once each: their
numbers of rows would change what one of them can do.

The server is trusted: it sees the updates. Neighbours are two federations that differ in what one client *sends*
(something or zeros), with the same selection. No amplification is claimed from the selection of clients, which is
public. Noise comes from a secret of the branch and not from the run's seed, so that it differs between branches: the
difference of two models with the same noise would have none.
"""

from __future__ import annotations

from collections.abc import Sequence

from oblivion.aggregation.gate import update_norm
from oblivion.aggregation.rule import LoraScheme, ordered, weighted_sum
from oblivion.config import RunConfig
from oblivion.errors import ConfigError
from oblivion.seeding import torch_generator
from oblivion.types import ClientUpdate, RoundInfo

MEAN_RULES = ("fedavg", "fedprox", "fedavgm", "fedadagrad", "fedadam", "fedyogi")


def private_mean(
    updates: Sequence[ClientUpdate], asked: int, clip_norm: float, noise_multiplier: float, secret: int, info: RoundInfo
) -> list[ClientUpdate]:
    """The noised mean of a round's updates, as the one update of a client that does not exist.

    Parameters
    ----------
    updates : sequence of ClientUpdate
        Any order.
    asked : int
        What the sum is divided by: how many clients a round asks, at least 1.
    clip_norm, noise_multiplier : float
        C and sigma.
    secret : int
        Of the branch.
    info : RoundInfo
        Its number decides which noise is drawn.

    Returns
    -------
    list of ClientUpdate
        One, named ``mean``, with one example; none where there are no updates.
    """
    import torch

    if not updates:
        return []
    by_id = ordered(updates)
    factors = [min(1.0, clip_norm / norm) if (norm := update_norm(update.delta)) > 0 else 1.0 for update in by_id]
    total = weighted_sum([update.delta for update in by_id], factors)
    generator = torch_generator(secret, "client noise", info.round)
    delta = {}
    for name, tensor in sorted(total.items()):
        noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
        delta[name] = ((tensor + noise_multiplier * clip_norm * noise) / asked).to(torch.float32)
    return [ClientUpdate(client_id="mean", round=info.round, delta=delta, num_examples=1, steps=1)]


def check_privacy(scheme: LoraScheme, config: RunConfig) -> None:
    """Refuse what a guarantee would not hold for.

    Raises
    ------
    ConfigError
        Naming the keys and what would work.
    """
    unit, name = config.privacy.unit, config.federation.aggregator
    if unit == "client" and name not in MEAN_RULES:
        raise ConfigError(
            f"privacy.unit = 'client' adds noise to the mean of the updates, and federation.aggregator = '{name}' "
            f"makes its step of something else; choose one of {', '.join(MEAN_RULES)}"
        )
    if unit == "client" and scheme.space == "product":
        raise ConfigError(
            f"privacy.unit = 'client' bounds updates of A and B, and lora.scheme = '{config.lora.scheme}' combines "
            "their products; choose fedit, ffa or rolora"
        )
    if unit == "sample" and config.lora.dropout:
        raise ConfigError(f"privacy.unit = 'sample' needs lora.dropout = 0, and it is {config.lora.dropout}")
