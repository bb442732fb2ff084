"""Client-level differential privacy: updates are clipped, their sum is noised, and the rule sees nothing else.

DP-FedAvg (McMahan, Ramage, Talwar and Zhang, 2018, "Learning differentially private recurrent language models",
Algorithm 1, fixed-denominator estimator, flat clipping): ``mean = (sum_k delta_k min(1, C / ||delta_k||) + sigma C z) /
m``, z standard normal. What the rule makes of the mean (momentum, moments, a server rate) is post-processing and costs
nothing more.

Deviations: all clients weigh the same; clients are chosen by a public hash, so no amplification by sampling is claimed;
m is ``federation.clients-per-round``, whoever answers; the noise comes from a secret key and is the same when a round
is aggregated again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from oblivion.aggregation.gate import update_norm
from oblivion.aggregation.sums import ordered
from oblivion.config import RunConfig
from oblivion.privacy.noise import NoiseStream, derive_key
from oblivion.types import ClientUpdate, RoundInfo

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class ClientPrivacy:
    """The stage between the contributions of a round and the server rule.

    Attributes
    ----------
    noise_multiplier : float
        sigma in the formula, at least 0.
    clip_norm : float
        C in the formula, above 0: the largest L2 norm that an update counts with.
    asked : int
        m in the formula: the number of clients that are asked in a round.
    """

    noise_multiplier: float
    clip_norm: float
    asked: int

    def mean(
        self, updates: Sequence[ClientUpdate], like: Mapping[str, Tensor], secret: bytes, info: RoundInfo
    ) -> ClientUpdate:
        """Compute the noised mean of a round's updates, which is the one update that the rule sees.

        Parameters
        ----------
        updates : sequence of ClientUpdate
            The updates in any order, possibly none; they are summed by client id in fp64.
        like : mapping of str to Tensor
            The tensors that are trained in this round; their names and shapes are used.
        secret : bytes
            The noise secret of the branch; with the round it decides the noise.
        info : RoundInfo
            The round.

        Returns
        -------
        ClientUpdate
            An update with an empty client id and ``num_examples = 1``.
        """
        import torch

        stream = NoiseStream(derive_key(secret, "client-noise", info.round))
        total = stream.gaussian_like(like, self.noise_multiplier * self.clip_norm)
        for update in ordered(updates):
            norm = update_norm(update.delta)
            factor = min(1.0, self.clip_norm / norm) if norm > 0 else 1.0
            for name, tensor in total.items():
                tensor.add_(update.delta[name].to(torch.float64), alpha=factor)
        delta = {name: (tensor / self.asked).to(torch.float32) for name, tensor in total.items()}
        return ClientUpdate(client_id="", round=info.round, delta=delta, num_examples=1, steps=0)


def client_privacy_of(config: RunConfig) -> ClientPrivacy | None:
    """Make the stage that a run asks for; None if it asks for no client-level privacy."""
    privacy = config.privacy
    if privacy.unit != "client":
        return None
    return ClientPrivacy(
        noise_multiplier=privacy.noise_multiplier,
        clip_norm=privacy.clip_norm,
        asked=config.federation.clients_per_round,
    )
