"""The gate: what an update must satisfy before it becomes a contribution.

Averaging takes whatever arrives: one NaN spreads to every parameter, a tensor of shape (1,) broadcasts into
any shape, a claimed example count of 1e12 owns the model, a negative one reverses the update. The gate
refuses such an update alone, and never the round: the aggregate of the others is bit for bit what it is
without it.

Decisions depend on the arguments only, so that they can be made again. Reasons name the rule that was
broken and tensors of the server's own adapter, never a value or a name that came from a client.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from oblivion.errors import ConfigError
from oblivion.models.factors import Factor, factor_of
from oblivion.named_statistics import Statistic, refusal
from oblivion.types import Adapter, ClientUpdate

if TYPE_CHECKING:
    from torch import Tensor

WINDOW = 5
"""How many rounds the bound from history looks back, of those in which clients trained the same factors."""
FEWEST_NORMS = 8
"""How many norms must be known before they make a bound."""
METRICS = frozenset({"loss", "skipped", "together", "tokens"})
"""The metrics that a client may report about a visit."""
LARGEST_METRIC = 1e12
QUARANTINE = "in quarantine"
"""The beginning of the reason for which a client is not asked."""
FOR_OTHERS = "its host answered for clients that it was not asked for"
"""The reason for which everything from such a host is refused; what it says about other clients is dropped."""


def tensor_norms(delta: Adapter) -> dict[str, float]:
    """Return the L2 norm of each tensor of an update, in fp64; it is finite exactly if all fp32 values are."""
    import torch

    return {name: float(torch.linalg.vector_norm(delta[name], dtype=torch.float64)) for name in sorted(delta)}


def total_norm(norms: Mapping[str, float]) -> float:
    """Return the L2 norm of a whole update from those of its tensors."""
    return math.sqrt(math.fsum(norms[name] ** 2 for name in sorted(norms)))


def update_norm(delta: Adapter) -> float:
    """Return the L2 norm over all tensors of an update together, summed in fp64."""
    return total_norm(tensor_norms(delta))


@dataclass(frozen=True, kw_only=True)
class GateState:
    """What the gate remembers; it is part of the state of a round on its branch.

    Attributes
    ----------
    norms : tuple of tuple of (str, float)
        For each round that passed the gate, oldest first: the accepted clients by id, each with the L2 norm of its
        update.
    trained : tuple of str
        For each such round the LoRA factors that its updates have, ``"A"``, ``"B"`` or ``"AB"``, since norms of
        different factors cannot be compared.
    strikes : tuple of (str, int, int, str)
        The clients whose last update was refused, by id: the number of such rounds in a row, the first of them, and the
        reason then.
    """

    norms: tuple[tuple[tuple[str, float], ...], ...] = ()
    trained: tuple[str, ...] = ()
    strikes: tuple[tuple[str, int, int, str], ...] = ()

    def after(
        self, round: int, contributions: Sequence[ClientUpdate], refused: Mapping[str, str] | None = None
    ) -> GateState:
        """Return the state after one more round.

        Parameters
        ----------
        round : int
            The round.
        contributions : sequence of ClientUpdate
            The updates that passed, with the norms that the gate measured.
        refused : mapping of str to str
            The clients whose update was refused in this round, with the reason. A client that was not asked keeps its
            strikes.
        """
        norms = tuple((update.client_id, total_norm(update.norms)) for update in contributions)
        passed = {update.client_id for update in contributions}
        strikes = {strike[0]: strike for strike in self.strikes if strike[0] not in passed}
        for client, reason in (refused or {}).items():
            _, count, first, why = strikes.get(client, (client, 0, round, reason))
            strikes[client] = (client, count + 1, first, why)
        trained = "".join(sorted({factor_of(name) for update in contributions for name in update.delta}))
        return GateState(
            norms=(*self.norms, norms),
            trained=(*self.trained, trained),
            strikes=tuple(strikes[client] for client in sorted(strikes)),
        )

    def without(self, client_id: str) -> GateState:
        """Return the state without anything about one client; no round is dropped."""
        return GateState(
            norms=tuple(tuple(pair for pair in norms if pair[0] != client_id) for norms in self.norms),
            trained=self.trained,
            strikes=tuple(strike for strike in self.strikes if strike[0] != client_id),
        )

    def quarantined(self, after: int) -> dict[str, str]:
        """Return the clients whose updates were refused `after` times in a row (none if it is 0), with the reason."""
        return {
            client: f"{QUARANTINE} since round {first}: {why}"
            for client, count, first, why in self.strikes
            if 0 < after <= count
        }

    def bound(self, factor: float, trained: Sequence[Factor]) -> float:
        """Return `factor` times the median norm of the updates of the last rounds that trained the same factors.

        The bound is infinite while fewer than `FEWEST_NORMS` norms are known, and with a factor of 0. It depends on
        earlier rounds alone, so that the order in which updates arrive changes nothing.
        """
        wanted = "".join(sorted(trained))
        alike = [norms for norms, of in zip(self.norms, self.trained, strict=True) if of == wanted]
        recent = [norm for norms in alike[-WINDOW:] for _, norm in norms]
        if not factor or len(recent) < FEWEST_NORMS:
            return math.inf
        return factor * statistics.median(recent) or math.inf


@dataclass(frozen=True)
class Gate:
    """Refuses updates that are malformed, too large, or not the ones that were asked for.

    Attributes
    ----------
    reference : Adapter
        The global adapter: an update must have its names and shapes exactly, in fp32 on the CPU.
    max_norm : float
        The largest L2 norm of a whole update, in the unit of the parameters; above 0 and finite.
    fingerprint : str
        Digest of the code that updates must be made with.
    steps : callable or None
        The number of optimizer steps that a visit with this many examples takes; None if it is not known. Rules divide
        by it, so that a wrong number would scale the update.
    reach : callable
        The largest L2 norm that an honest update of a client (by id) with this many examples can have, in the unit of
        the parameters. It bounds updates from the first round on.
    tokens : callable
        The largest number of tokens that a visit with this many examples can forward.
    statistics : mapping of str to Statistic
        What an update must have beside its tensors, exactly; by default nothing.
    """

    reference: Adapter
    max_norm: float
    fingerprint: str
    steps: Callable[[int], int] | None = None
    reach: Callable[[str, int], float] = lambda client, examples: math.inf
    tokens: Callable[[int], float] = lambda examples: LARGEST_METRIC
    statistics: Mapping[str, Statistic] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if isinstance(self.max_norm, bool) or not 0 < self.max_norm < math.inf:
            raise ConfigError(f"the gate's norm bound is {self.max_norm!r}; it must be above 0 and finite")

    def check(self, update: ClientUpdate, expected_client: str, expected_round: int, max_examples: int) -> str | None:
        """Say what is wrong with one update.

        Parameters
        ----------
        update : ClientUpdate
            The update as it was received; its fields may hold anything.
        expected_client, expected_round
            The client that was asked, and the round.
        max_examples : int
            The most examples that this client can have trained on.

        Returns
        -------
        str or None
            None if the update is accepted, else the reason in words.
        """
        reason, _ = self._examine(update, expected_client, expected_round, max_examples)
        return reason

    def _examine(
        self, update: ClientUpdate, client: str, round: int, limit: int
    ) -> tuple[str | None, dict[str, float]]:
        """Return the reason to refuse the update, if there is one, and the norms of its tensors if they are known."""
        reason = self._check_envelope(update, client, round, limit) or self._check_manifest(update.delta)
        reason = reason or refusal(update.statistics, self.statistics)
        if reason is not None:
            return reason, {}
        norms = tensor_norms(update.delta)
        for name, norm in norms.items():
            if not math.isfinite(norm):
                return f"tensor '{name}' has values that are not finite", norms
        bound = min(self.max_norm, self.reach(client, update.num_examples))
        if not total_norm(norms) <= bound:
            return f"its L2 norm is above the bound of {bound:g}", norms
        if update.steps == 0 and any(norms.values()):
            return "it has changed tensors without a step", norms
        return None, norms

    def _check_envelope(self, update: ClientUpdate, client: str, round: int, max_examples: int) -> str | None:
        if not isinstance(update.client_id, str) or update.client_id != client:
            return "it comes from a client that was not asked"
        if type(update.round) is not int or update.round != round:
            return f"it is not of round {round}"
        if not isinstance(update.fingerprint, str) or update.fingerprint != self.fingerprint:
            return "it was made by other code than this server's; install the same version on both sides"
        # `type(...) is int` because True is an int to isinstance, and 1.0 == 1.
        if type(update.num_examples) is not int or not 1 <= update.num_examples <= max_examples:
            return f"its number of examples is not a whole number from 1 to {max_examples}"
        if type(update.steps) is not int or update.steps < 0:
            return "its number of steps is not a whole number of at least 0"
        if self.steps is not None and update.steps != self.steps(update.num_examples):
            return "its number of steps is not the one that its number of examples takes"
        return None

    def _check_manifest(self, delta: Any) -> str | None:
        if not isinstance(delta, Mapping):
            return "its tensors are not a mapping from names to tensors"
        missing = sorted(name for name in self.reference if name not in delta)
        if missing:
            return f"it lacks {len(missing)} of {len(self.reference)} tensors, the first being '{missing[0]}'"
        if len(delta) != len(self.reference):
            return f"it has {len(delta) - len(self.reference)} tensors that the adapter does not have"
        for name in sorted(self.reference):
            reason = _tensor_reason(delta[name], self.reference[name])
            if reason:
                return f"tensor '{name}' {reason}"
        return None

    def admit(
        self, updates: Sequence[ClientUpdate], asked: Mapping[str, int], round: int
    ) -> tuple[tuple[ClientUpdate, ...], dict[str, str]]:
        """Check the updates that one host sent.

        Parameters
        ----------
        updates : sequence of ClientUpdate
            The updates as they were received, in any order.
        asked : mapping of str to int
            The clients that this host was asked for, each with the most examples it can have trained on.
        round : int
            The round.

        Returns
        -------
        tuple
            The accepted updates in client-id order, each with its `norms` and those of its metrics that can be true;
            refused client ids with the reason, all of them of `asked`.
            Where two updates claim one client, neither is accepted: which is genuine cannot be known, and the
            choice must not depend on the order of arrival. Where one claims a client that the host was not asked for,
            nothing of the host is accepted, and nothing is said of whom it claims.
        """
        claims = Counter(update.client_id for update in updates if isinstance(update.client_id, str))
        if any(not isinstance(update.client_id, str) or update.client_id not in asked for update in updates):
            return (), dict.fromkeys(sorted(asked), FOR_OTHERS)
        accepted: dict[str, ClientUpdate] = {}
        refused: dict[str, str] = {}
        for update in updates:
            client = update.client_id
            norms: dict[str, float] = {}
            reason: str | None = "more than one update claims to come from this client"
            if claims[client] == 1:
                reason, norms = self._examine(update, client, round, asked[client])
            if reason is None:
                most = {
                    "tokens": self.tokens(update.num_examples),
                    "skipped": asked[client] - update.num_examples,
                    "together": len(asked),
                }
                accepted[client] = replace(update, norms=norms, metrics=_plausible(update.metrics, most))
            else:
                refused[client] = reason
        return tuple(accepted[client] for client in sorted(accepted)), dict(sorted(refused.items()))


def _plausible(metrics: Any, most: Mapping[str, float]) -> dict[str, float]:
    """Return the reported metrics that can be true; they are shown and averaged, and never a reason to refuse."""
    told = metrics if isinstance(metrics, Mapping) else {}

    def possible(name: Any, value: Any) -> bool:
        if name not in METRICS or type(value) is not float or not abs(value) <= LARGEST_METRIC:
            return False
        return name == "loss" or (0 <= value <= most[name] and value.is_integer())

    return {name: value for name, value in told.items() if possible(name, value)}


def limited(contributions: Sequence[ClientUpdate], factor: float) -> Sequence[ClientUpdate]:
    """Let no client's number of examples count more than `factor` times the median of the round's; 0 for no limit.

    A client says itself how many examples it has, so this bounds what a single one can weigh. It is a function of the
    round's contributions alone; the ledger keeps the number as it was claimed.
    """
    if not factor or not contributions:
        return contributions
    most = max(1, int(factor * statistics.median(update.num_examples for update in contributions)))
    return [replace(u, num_examples=most) if u.num_examples > most else u for u in contributions]


def _tensor_reason(value: Any, expected: Tensor) -> str | None:
    import torch

    if not isinstance(value, torch.Tensor):
        return "is not a tensor"
    if value.layout is not torch.strided or value.device.type != "cpu":
        return "is not a dense tensor on the CPU"
    if value.dtype is not torch.float32:
        return f"is of type {str(value.dtype).removeprefix('torch.')}, not float32"
    if value.shape != expected.shape:
        return f"does not have the shape {tuple(expected.shape)}"
    return None
