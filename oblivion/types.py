"""The values that travel between the parts: samples, states, updates, requests and replies.

Every type here is an immutable value. Tensors inside them are never changed in place; whoever needs another
value makes a new one. Nothing in this module imports torch at run time.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias

from oblivion.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from oblivion.named_statistics import Statistic

Adapter: TypeAlias = "Mapping[str, Tensor]"
"""Trainable tensors keyed by PEFT name, in sorted order: fp32, on the CPU, never changed in place."""

Guarantee: TypeAlias = Literal["exact", "certified", "approximate", "none", "suppression"]
"""How much a removal promises, strongest first; `suppression` hides and is never called a removal."""

CLIENT_ID = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")


def check_client_id(client_id: str) -> str:
    """Return `client_id` if it is a slug.

    Raises
    ------
    ConfigError
        If it does not match ``[a-z0-9][a-z0-9_-]{0,63}``.
    """
    if not CLIENT_ID.fullmatch(client_id):
        raise ConfigError(
            f"client id {client_id!r} is not allowed; use 1 to 64 of a-z, 0-9, '_' and '-', "
            "beginning with a letter or digit"
        )
    return client_id


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One question with its answer, and what an evaluation compares the answer with.

    Attributes
    ----------
    id : str
        The id, which does not change when another sample goes.
    client_id : str
        The owner; empty until a partition has named one.
    prompt, answer : str
        The question and the answer as plain text, before any template.
    paraphrase : str
        The same answer in other words; empty if there is none.
    wrong_answers : tuple of str
        Plausible answers that are false (TOFU's perturbed answers).
    path : tuple of str
        The natural owner, outermost first (institution, patient; for TOFU the author).
    extras : mapping
        Further values, which other modalities need.
    """

    id: str
    client_id: str = ""
    prompt: str
    answer: str
    paraphrase: str = ""
    wrong_answers: tuple[str, ...] = ()
    path: tuple[str, ...] = ()
    extras: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class GlobalState:
    """What the server holds between rounds and hands to the clients.

    Attributes
    ----------
    adapter : Adapter
        The global adapter.
    residual : Adapter
        Low-rank factors that a LoRA scheme keeps beside the adapter.
    """

    adapter: Adapter
    residual: Adapter = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class RoundInfo:
    """Which round this is: `round` is counted from 1 on its branch, `rounds` is where the branch ends."""

    branch: str
    round: int
    rounds: int
    population: tuple[str, ...]
    seed: int


@dataclass(frozen=True, kw_only=True)
class ClientUpdate:
    """What one client sends back: `delta` is its adapter minus the global one.

    Attributes
    ----------
    client_id, round
        The client, and the round.
    delta : Adapter
        The update, with the names and shapes of the global adapter.
    num_examples : int
        The number of distinct samples that were trained on; it is the weight in an average.
    steps : int
        The number of optimizer steps (client-steps, the unit of cost).
    metrics : mapping of str to float
        ``loss`` (mean over the visit's tokens, in nats), ``tokens`` (the number forwarded), ...
    fingerprint : str
        Digest of the code that made the update.
    norms : mapping of str to float
        L2 norm of each tensor of `delta`, as the gate measured it; empty before.
    statistics : mapping of str to Tensor
        What the objective of a visit declares beside the update; empty in learning.
    """

    client_id: str
    round: int
    delta: Adapter
    num_examples: int
    steps: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    fingerprint: str = ""
    norms: Mapping[str, float] = field(default_factory=dict, compare=False)
    statistics: Adapter = field(default_factory=dict, compare=False)


@dataclass(frozen=True, kw_only=True)
class ForgetRequest:
    """A request to forget a whole client (`sample_ids` is None) or some of its samples.

    A request that travels is signed by its client (`oblivion.ledger.requests`); one that a simulation makes for
    itself leaves the last five fields empty.

    Attributes
    ----------
    id : str
        Identifies the request; of a signed one, it follows from the content.
    client_id : str
        The client that asks, and whose data is to be forgotten.
    sample_ids : tuple of str or None
        The samples to forget, in any order; None means all that the client has.
    federation : str, default ""
        Id of the run that the request is for.
    issued_at, expires_at : str, default ""
        The times of signing and of expiry: ISO 8601, UTC, such as ``2026-11-25T22:00:00Z``.
    nonce : str, default ""
        32 lower-case hex digits, unique to this request.
    signature : str, default ""
        Ed25519, 128 lower-case hex digits.
    """

    id: str
    client_id: str
    sample_ids: tuple[str, ...] | None = None
    federation: str = ""
    issued_at: str = ""
    expires_at: str = ""
    nonce: str = ""
    signature: str = ""

    @property
    def whole_client(self) -> bool:
        """Whether the client leaves altogether."""
        return self.sample_ids is None


@dataclass(frozen=True, kw_only=True)
class ClientTask:
    """One client's part of a message.

    Attributes
    ----------
    client_id : str
        The client.
    excluded : tuple of str
        Sample ids that must not be trained on, because they were forgotten.
    forget : tuple of str or None
        In a visit, the sample ids to forget; None means all that the client has, and an empty tuple none of them.
    correction : Adapter
        The rule's correction, which the client adds to its gradient at every step; empty for none.
    noise_key : str
        With privacy of samples, the secret of this one visit in hex digits, made from the branch's; else empty.
    id_key : str
        The key that the client's sample ids are made with in hex digits; empty where they are those of the data.
    """

    client_id: str
    excluded: tuple[str, ...] = ()
    forget: tuple[str, ...] | None = None
    correction: Adapter = field(default_factory=dict)
    noise_key: str = field(default="", repr=False)
    id_key: str = field(default="", repr=False)


@dataclass(frozen=True, kw_only=True)
class HostRequest:
    """One message to one host. It is complete: a host needs nothing but this and its data to answer.

    Attributes
    ----------
    kind : str
        The message type on the network.
    host : str
        The host that is asked.
    config : mapping
        The resolved run config, as plain JSON values.
    cohorts : tuple of tuple of ClientTask
        The clients that the host is asked for, in cohorts that are trained together; empty in a `DescribeRequest`.
    """

    kind: ClassVar[str]
    host: str = ""
    config: Mapping[str, Any]
    cohorts: tuple[tuple[ClientTask, ...], ...] = ()


@dataclass(frozen=True, kw_only=True)
class DescribeRequest(HostRequest):
    """The host says which clients it serves, and how many rows each has."""

    kind: ClassVar[str] = "query.describe"


@dataclass(frozen=True, kw_only=True)
class StartRequest(HostRequest):
    """The host loads its model, so that the first message that needs it does not wait; nobody waits for the reply."""

    kind: ClassVar[str] = "query.start"


@dataclass(frozen=True, kw_only=True)
class EvaluateRequest(HostRequest):
    """Every client measures a model on its own rows.

    Attributes
    ----------
    state : GlobalState
        The model.
    store, line
        As in a `VisitRequest`.
    """

    kind: ClassVar[str] = "evaluate"
    state: GlobalState
    store: str = ""
    line: tuple[tuple[str, int, int], ...] = ()


@dataclass(frozen=True, kw_only=True)
class TrainRequest(HostRequest):
    """The cohorts learn.

    Attributes
    ----------
    info : RoundInfo
        The round.
    state : GlobalState
        The global state that the clients start from.
    objective : str
        Registered name of the local loss.
    parameters : mapping
        The objective's parameters.
    """

    kind: ClassVar[str] = "train"
    info: RoundInfo
    state: GlobalState
    objective: str = "lm"
    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class VisitRequest(TrainRequest):
    """The cohorts train with the objective of a phase, outside the rounds of learning.

    Attributes
    ----------
    local_epochs : int
        The number of passes over the rows.
    learning_rate : float
        The learning rate, in place of that of the config.
    public : tuple of Sample
        The server's public rows, for anchors.
    statistics : mapping of str to Statistic
        What each client sends beside its update.
    store : str
        The folder of the run with the clients' private states; empty for none.
    line : tuple of (str, int, int)
        The rounds that led here, as (branch, first, last) in order: of these a client's private state may be.
    """

    kind: ClassVar[str] = "train.visit"
    local_epochs: int
    learning_rate: float
    public: tuple[Sample, ...] = ()
    statistics: Mapping[str, Statistic] = field(default_factory=dict)
    store: str = ""
    line: tuple[tuple[str, int, int], ...] = ()


@dataclass(frozen=True, kw_only=True)
class HostReply:
    """A host's answer, one record per client.

    Attributes
    ----------
    host : str
        The host that answers.
    updates : tuple of ClientUpdate
        For ``train`` and ``train.visit``.
    failures : mapping of str to str
        Client id to the reason, for clients that could not be served.
    metrics : mapping
        For ``evaluate``: client id to metric name to (sum, weight).
    clients : mapping of str to mapping
        For ``query.describe``: client id to ``{"samples": ..., "skipped": ...}``.
    """

    host: str = ""
    updates: tuple[ClientUpdate, ...] = ()
    failures: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, Mapping[str, tuple[float, float]]] = field(default_factory=dict)
    clients: Mapping[str, Mapping[str, int]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class MetricResult:
    """A metric's value with the number of rows it was averaged over.

    Attributes
    ----------
    value : float or None
        The aggregate; None where there is none.
    per_example : mapping of str to mapping
        Row position (as text) to the row's own numbers, as OpenUnlearning writes them.
    n : int
        The number of rows that entered.
    interval : tuple of float or None
        95 % interval over the rows; None where there is none.
    reason : str
        Why there is no value; empty where there is one.
    extra : mapping of str to Any
        What is shown beside the value, as plain JSON values; ``left_out`` counts rows for which it is not defined.
    sums : tuple of float or None
        Sum and weight, whose quotient is the value and which add up over clients; None where it is no mean.
    """

    value: float | None
    per_example: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    n: int = 0
    interval: tuple[float, float] | None = None
    reason: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)
    sums: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.value is None and not self.reason:
            raise ValueError("a result without a value needs a reason")


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a branch cost: optimizer steps, tokens forwarded in training (None: withheld), bytes sent each way."""

    client_steps: int = 0
    tokens: int | None = 0
    bytes_up: int = 0
    bytes_down: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            client_steps=self.client_steps + other.client_steps,
            tokens=None if self.tokens is None or other.tokens is None else self.tokens + other.tokens,
            bytes_up=self.bytes_up + other.bytes_up,
            bytes_down=self.bytes_down + other.bytes_down,
        )
