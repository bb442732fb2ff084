"""The privacy budget: the loss that the clients of a federation have spent, and the loss that a plan would spend.

The budget is the worst case over clients. A client pays for every round in which it was asked, on every branch: also
those of oracles and of removals that were tried and dropped, since each made a model from its data.

- Unit sample: neighbours are two federations that differ in one row of one client, where one has a null row, which is
  drawn and trains nothing. Numbers of rows, steps and who is asked are the same in both. A visit is as many steps of
  DP-SGD as its number of samples makes, added up as Rényi divergences. A row belongs to one client, so the other
  clients' visits cost it nothing; what stands in k rows, at one client or several, is protected as a group of k.
- Unit client: neighbours are a federation and the same without one of its clients. Where a round's population is no
  larger than ``federation.clients-per-round``, all are asked, and the sum of the clipped updates moves by at most C.
  Where it is larger, the next client takes the place of the one that is gone, and the sum moves by up to 2 C. A round
  is one Gaussian mechanism with noise multiplier sigma, or sigma / 2; several make mu^2 = the sum of (1 or 2)^2 /
  sigma^2. The clients of the federation pay; nothing is claimed about one that was never in it.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeAlias

from oblivion.config import PrivacyConfig, RunConfig, TrainConfig
from oblivion.ledger.rounds import Charge, Charged
from oblivion.privacy.accountant import LEAST_NOISE, epsilon_of_rdp, gaussian_epsilon, group, sampled_gaussian_rdp
from oblivion.selection import population, select_clients
from oblivion.visit_steps import sampling_rate, steps_per_visit

if TYPE_CHECKING:
    import numpy as np

    Loss: TypeAlias = "np.ndarray[Any, np.dtype[np.float64]]"

_LARGEST_GROUP = 3


@dataclass(frozen=True)
class Budget:
    """The privacy loss of every client so far. A budget is a value; `after` makes the next.

    Attributes
    ----------
    privacy : PrivacyConfig
        Unit, noise, delta and bound; the unit is not ``"none"``.
    train : TrainConfig
        Batch size and epochs.
    spent : mapping of str to array
        Per client the sum of its visits: Rényi divergences at `oblivion.privacy.accountant.ORDERS`, or (unit client)
        the (1 or 2)^2 / sigma^2 of each.
    """

    privacy: PrivacyConfig
    train: TrainConfig
    spent: Mapping[str, Loss] = field(default_factory=dict)

    def after(self, *rounds: Charge) -> Budget:
        """Return the budget after some more rounds."""
        spent = dict(self.spent)
        for client, charged in (visit for clients in rounds for visit in clients.items()):
            spent[client] = spent.get(client, 0.0) + self._visit(charged)
        return replace(self, spent=spent)

    def _visit(self, charged: int) -> Loss:
        import numpy as np

        noise = self.privacy.noise_multiplier
        if self.privacy.unit == "client":
            return np.array([charged**2 / noise**2 if noise >= LEAST_NOISE else np.inf])
        batch = self.train.batch_size
        steps = steps_per_visit(charged, batch, self.train.local_epochs)
        return steps * sampled_gaussian_rdp(sampling_rate(charged, batch), noise)

    @property
    def distance(self) -> float:
        """The mu of unit client: the largest distance of models with and without a client, in units of the noise."""
        return math.sqrt(max((float(loss[0]) for loss in self.spent.values()), default=0.0))

    @property
    def epsilon(self) -> float:
        """The largest epsilon of any client, at ``privacy.delta``."""
        delta = self.privacy.delta
        if self.privacy.unit == "client":
            return gaussian_epsilon(self.distance, delta)
        return max((epsilon_of_rdp(loss, delta) for loss in self.spent.values()), default=0.0)

    def trail(self, rounds: Sequence[Charge]) -> list[float]:
        """Return epsilon after each of some more rounds."""
        budget, epsilons = self, []
        for clients in rounds:
            budget = budget.after(clients)
            epsilons.append(budget.epsilon)
        return epsilons

    def excess(self, rounds: Sequence[Charge]) -> str:
        """Say why some more rounds exceed ``privacy.max-epsilon``; the text is empty if they fit."""
        bound = self.privacy.max_epsilon
        epsilons = self.trail(rounds)
        if not bound or not epsilons or epsilons[-1] <= bound:
            return ""
        fit = sum(1 for epsilon in epsilons if epsilon <= bound)
        return (
            f"epsilon {self.epsilon:.3g} would become {epsilons[-1]:.3g} (delta {self.privacy.delta:g}), above "
            f"privacy.max-epsilon = {bound:g}; {fit} of its {len(epsilons)} rounds fit"
        )


def budget_of(config: RunConfig) -> Budget | None:
    """Return the empty budget of a run; None without privacy."""
    return None if config.privacy.unit == "none" else Budget(config.privacy, config.train)


def charge(
    unit: str, samples: Mapping[str, int], selected: Collection[str], asked: Collection[str], others: bool
) -> dict[str, int]:
    """Return which clients pay for a round from the privacy budget, and for what.

    Parameters
    ----------
    unit : str
        ``"sample"`` or ``"client"``.
    samples : mapping of str to int
        The number of samples of each client that is asked.
    selected, asked : collection of str
        The selected clients, and those of them that are asked; the others are unavailable.
    others : bool
        Whether the round's population has clients that were not selected: one of them takes the place of a client that
        leaves.

    Returns
    -------
    dict
        Unit sample: the number of samples of each client that is asked. Unit client: by how many clipping bounds the
        sum can move if the client goes: 1 for its own update if it is asked, plus 1 for the update of the client that
        takes its place if there is one (even if it was itself unavailable). A client that was not selected changes
        nothing by going, and pays nothing.
    """
    if unit == "sample":
        return {client: samples[client] for client in asked}
    moved = {client: (client in asked) + others for client in selected}
    return {client: bounds for client, bounds in moved.items() if bounds}


def expected_rounds(
    unit: str, samples: Mapping[str, int], joins: Mapping[str, int], per_round: int, seed: int, first: int, last: int
) -> list[dict[str, int]]:
    """Return which clients would pay for rounds `first` to `last`, and for what, if all are available.

    Parameters
    ----------
    unit : str
        The unit of privacy.
    samples : mapping of str to int
        The number of samples of each client that takes part.
    joins, per_round, seed
        The settings that decide the selection.
    first, last : int
        The first and the last round.
    """
    rounds = []
    for r in range(first, last + 1):
        there = population(tuple(samples), joins, r)
        selected = select_clients(there, per_round, seed, r)
        rounds.append(charge(unit, samples, selected, selected, len(there) > per_round))
    return rounds


def statement(config: RunConfig, charged: Sequence[Charged], line: Sequence[tuple[int, int, int]]) -> dict[str, Any]:
    """Summarise the privacy of a run as plain values.

    Parameters
    ----------
    config : RunConfig
        A config with a unit of privacy.
    charged : sequence of Charged
        All rounds that were begun, in order.
    line : sequence of (int, int, int)
        The pieces of the head's line, as `oblivion.ledger.store.StoredLedger.line` gives them.

    Returns
    -------
    dict
        ``unit``, ``noise_multiplier``, ``clip_norm``, ``delta``, ``max_epsilon``, ``epsilon``, ``rounds`` (epsilon
        after each, over everything that was done before it) and, for unit client, ``forgetting``; see
        `forgetting_bounds`.
    """
    epsilons = Budget(config.privacy, config.train).trail([one.clients for one in charged])
    said: dict[str, Any] = {
        "unit": config.privacy.unit,
        "noise_multiplier": config.privacy.noise_multiplier,
        "clip_norm": config.privacy.clip_norm,
        "delta": config.privacy.delta,
        "max_epsilon": config.privacy.max_epsilon,
        "epsilon": epsilons[-1] if epsilons else 0.0,
        "rounds": [
            {"branch": one.branch, "round": one.round, "epsilon": epsilon}
            for one, epsilon in zip(charged, epsilons, strict=True)
        ],
        "forgetting": [],
    }
    if config.privacy.unit == "client":
        on_line = [one for one in charged if any(n == one.number and a <= one.round <= b for n, a, b in line)]
        said["forgetting"] = forgetting_bounds(config, [one.clients for one in on_line])
    return said


def forgetting_bounds(config: RunConfig, rounds: Sequence[Charge]) -> list[dict[str, Any]]:
    """Bound how far a model is from one that some clients took no part in, if nothing is done to forget them.

    For one client it is the epsilon of `Budget` over the same rounds. For k clients the sum of a round moves by at most
    as much as for each of them in turn, so k times the distance of the one that moves most bounds it.

    Returns
    -------
    list of dict
        For 1, 2 and 3 clients: ``clients``; ``epsilon`` and ``delta`` by group privacy; ``gaussian_epsilon``, exact at
        ``privacy.delta``.
    """
    budget, wanted = Budget(config.privacy, config.train).after(*rounds), config.privacy.delta
    bounds = []
    for size in range(1, _LARGEST_GROUP + 1):
        epsilon, delta = group(budget.epsilon, wanted, size)
        exact = gaussian_epsilon(size * budget.distance, wanted)
        bounds.append({"clients": size, "epsilon": epsilon, "delta": delta, "gaussian_epsilon": exact})
    return bounds
