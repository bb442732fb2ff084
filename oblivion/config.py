"""The one tree of settings, which is read from TOML and ``--set``, validated, and written back out.

Keys are kebab-case and dotted (``train.batch-size``). This module is the only source of defaults.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tomli_w
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from oblivion.client_names import client_id_of
from oblivion.errors import ConfigError, nearest
from oblivion.method_tables import METHODS, check_method_names, method_tables, set_over
from oblivion.untrusted import LARGEST_TOML, as_text, check_numbers, parse_toml, read, shown
from oblivion.validation import faults


def _kebab(name: str) -> str:
    return name.replace("_", "-")


def _client(name: str) -> str:
    """Return the id of a client that is named as in the data; the name, which may be a person's, is not kept."""
    try:
        return client_id_of(name)
    except ValueError as error:
        raise ValueError(f"the name of a client {error}; expected its id, or its name in the data") from None


def _bounded(values: dict[str, Any]) -> dict[str, Any]:
    for key, value in values.items():
        check_numbers(key, value)
    return values


Parameters = Annotated[dict[str, Any], AfterValidator(_bounded)]
"""Keyword arguments of a registered part, which checks them itself; numbers beyond all use are refused for it."""
Methods = Annotated[dict[str, Parameters], BeforeValidator(method_tables), AfterValidator(check_method_names)]
"""The settings of each removal that is tried, by the name that a scenario gives them."""
_SCENARIO = "a scenario in TOML"
MOST_ROUNDS = 10_000
MOST_CLIENTS = 100_000
MOST_BATCH = 65_536
MOST_TOKENS = 65_536
MOST_ROWS = 10**9


class _Section(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, alias_generator=_kebab, populate_by_name=True, allow_inf_nan=False
    )


class ModelConfig(_Section):
    """The base model: ``tiny``, a folder, or a hub id with a pinned revision."""

    name: str = "tiny"
    parameters: Parameters = {}
    revision: str = ""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"

    def __hash__(self) -> int:
        """Hash what is always hashable, so that a model in memory is found by its settings."""
        return hash((self.name, self.revision, self.dtype))


class LoraConfig(_Section):
    """Low-rank adapters (Hu et al., 2021): ``W + (alpha / rank) B A`` on the target layers."""

    rank: int = Field(16, ge=1, le=1024, strict=True)
    alpha: float = Field(32, gt=0, le=1e6, strict=True)
    dropout: float = Field(0.0, ge=0, lt=1, strict=True)
    targets: str | tuple[str, ...] = "all-linear"
    scheme: str = "fedit"


class DataConfig(_Section):
    """The training data, its owners, and the server's own rows."""

    name: str = "authors"
    path: str = ""
    partition: str = "natural"
    partition_parameters: Parameters = {}
    parameters: Parameters = {}
    template: str = "plain"
    columns: dict[str, str] = {}
    public: str = ""


class FederationConfig(_Section):
    """The clients, the rounds, the aggregation rule and the gate."""

    clients: int = Field(8, ge=1, le=MOST_CLIENTS, strict=True)
    rounds: int = Field(10, ge=1, le=MOST_ROUNDS, strict=True)
    clients_per_round: int = Field(8, ge=1, le=MOST_CLIENTS, strict=True)
    learning: str = "rounds"
    aggregator: str = "fedavg"
    parameters: Parameters = {}
    joins: dict[str, Annotated[int, Field(ge=1, le=MOST_ROUNDS, strict=True)]] = {}
    ranks: dict[str, Annotated[int, Field(ge=1, le=1024, strict=True)]] = {}
    quorum: float = Field(0.5, gt=0, le=1, strict=True)
    max_update_norm: float = Field(1000.0, gt=0, le=1e12, strict=True)
    norm_factor: float = Field(10.0, ge=0, le=1e12, strict=True)
    max_influence: float = Field(10.0, ge=0, le=1e12, strict=True)
    quarantine_after: int = Field(3, ge=0, le=MOST_ROUNDS, strict=True)

    @field_validator("joins", "ranks")
    @classmethod
    def _by_client(cls, values: dict[str, int]) -> dict[str, int]:
        by_id: dict[str, int] = {}
        for client, value in values.items():
            if by_id.setdefault(_client(client), value) != value:
                raise ValueError(f"two names of the client '{_client(client)}' have different values; leave one out")
        return by_id


class TrainConfig(_Section):
    """A client's local training."""

    batch_size: int = Field(8, ge=1, le=MOST_BATCH, strict=True)
    accumulation: int = Field(1, ge=1, le=MOST_BATCH, strict=True)
    local_epochs: int = Field(4, ge=1, le=10_000, strict=True)
    learning_rate: float = Field(3e-3, gt=0, le=1e3, strict=True)
    optimizer: Literal["adamw", "sgd"] = "adamw"
    weight_decay: float = Field(0.0, ge=0, le=1e3, strict=True)
    clip_norm: float = Field(1.0, gt=0, le=1e12, strict=True)
    max_length: int = Field(0, ge=0, le=2**20, strict=True)
    gradient_checkpointing: bool = Field(False, strict=True)
    threads: int = Field(1, ge=1, le=256, strict=True)
    cohort: Annotated[int, Field(ge=1, le=4096, strict=True)] | Literal["auto"] = "auto"

    @property
    def cohort_size(self) -> int:
        """The number of clients that are trained together; 1 until ``auto`` is resolved with the base model."""
        return 1 if self.cohort == "auto" else self.cohort


class PrivacyConfig(_Section):
    """Differential privacy: what it protects, how much noise is added, and how much may be spent."""

    unit: Literal["none", "sample", "client"] = "none"
    noise_multiplier: float = Field(1.0, ge=0, le=1e6, strict=True)
    clip_norm: float = Field(1.0, gt=0, le=1e12, strict=True)
    delta: float = Field(1e-5, gt=0, lt=1, strict=True)
    max_epsilon: float = Field(0.0, ge=0, le=1e6, strict=True)


class ForgetConfig(_Section):
    """A request to forget, and the removals that answer it, each with its settings."""

    client: str = ""
    samples: str = ""
    methods: Methods = {}

    @field_validator("client")
    @classmethod
    def _id(cls, name: str) -> str:
        return _client(name) if name else ""


class EvaluateConfig(_Section):
    """What is measured, on how many rows, and with how many oracles, whose spread shows what is noise."""

    suite: str = "tofu"
    parameters: Parameters = {}
    oracle_seeds: int = Field(1, ge=0, le=100, strict=True)
    limit: int = Field(0, ge=0, le=MOST_ROWS, strict=True)
    max_new_tokens: int = Field(64, ge=1, le=MOST_TOKENS, strict=True)
    batch_size: int = Field(32, ge=1, le=MOST_BATCH, strict=True)


class LedgerConfig(_Section):
    """What is kept of every round: at which precision, for how long, and how often the whole state is kept."""

    checkpoint_every: int = Field(5, ge=1, le=MOST_ROUNDS, strict=True)
    precision: Literal["float32", "bfloat16"] = "float32"
    retention: int = Field(0, ge=0, le=MOST_ROUNDS, strict=True)


class SimulationConfig(_Section):
    """The number of simulated hosts, and how long one message may take."""

    hosts: Annotated[int, Field(ge=1, le=1024, strict=True)] | Literal["auto"] = "auto"
    deadline: float = Field(1800.0, gt=0, le=1e7, strict=True)

    @property
    def host_count(self) -> int:
        """The number of hosts of a config in which ``auto`` is resolved.

        Raises
        ------
        ConfigError
            If it is not resolved yet.
        """
        if self.hosts == "auto":
            raise ConfigError(
                "simulation.hosts = 'auto' is resolved when a config is checked against its data; do that"
            )
        return self.hosts


class RunConfig(_Section):
    """Everything that decides a run."""

    seed: int = Field(0, ge=0, lt=2**63, strict=True)
    engine: Literal["ray", "inline"] = "ray"
    model: ModelConfig = ModelConfig()
    lora: LoraConfig = LoraConfig()
    data: DataConfig = DataConfig()
    federation: FederationConfig = FederationConfig()
    train: TrainConfig = TrainConfig()
    privacy: PrivacyConfig = PrivacyConfig()
    forget: ForgetConfig = ForgetConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    ledger: LedgerConfig = LedgerConfig()
    simulation: SimulationConfig = SimulationConfig()

    @model_validator(mode="after")
    def _consistent(self) -> RunConfig:
        late = {c: r for c, r in self.federation.joins.items() if r > self.federation.rounds}
        if late:
            client, first = next(iter(late.items()))
            raise ValueError(
                f"federation.joins.{client} = {first} is after the last round "
                f"(federation.rounds = {self.federation.rounds})"
            )
        for client, rank in self.federation.ranks.items():
            if rank > self.lora.rank:
                raise ValueError(f"federation.ranks.{client} = {rank} is above lora.rank = {self.lora.rank}")
        if self.forget.methods and not self.forget.client:
            raise ValueError("forget.methods is set, but forget.client names no client")
        return self

    def to_json(self) -> dict[str, Any]:
        """Return the config as plain JSON values with the keys of the TOML file."""
        return self.model_dump(mode="json", by_alias=True)

    def to_toml(self) -> str:
        """Return the config as TOML text that `load_config` reads back to an equal config."""
        return tomli_w.dumps(self.to_json())


def _known_keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    keys: list[str] = []
    for name, info in model.model_fields.items():
        key = prefix + _kebab(name)
        annotation = info.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            keys += _known_keys(annotation, key + ".")
        else:
            keys.append(key)
    return keys


def _explain(error: ValidationError, source: str) -> ConfigError:
    lines = []
    for kind, key, value, said in faults(RunConfig, error):
        if kind == "extra_forbidden":
            known = _known_keys(RunConfig)
            section = key.rpartition(".")[0]
            siblings = [k for k in known if k.rpartition(".")[0] == section] or known
            if not section:  # a mistyped section is nearer to a section than to a key
                siblings = [_kebab(name) for name in RunConfig.model_fields]
            more = f". Settings of a removal stand in {METHODS}.NAME" if section == "forget" else ""
            lines.append(f"{source}: unknown key '{shown(key)[1:-1]}'; {nearest(key, siblings)}{more}")
        else:
            lines.append(f"{source}: {key} = {value}: {said}" if key else f"{source}: {said}")
    return ConfigError("\n".join(dict.fromkeys(lines)))


def config_from_mapping(values: Mapping[str, Any], source: str = "config") -> RunConfig:
    """Validate nested plain values (such as `RunConfig.to_json` returns).

    Raises
    ------
    ConfigError
        Naming the source, the key, the value, and what is allowed.
    """
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        raise _explain(error, source) from None


def parse_assignment(text: str) -> tuple[str, Any]:
    """Split ``key=value``; the value is read as TOML, and as a plain string where it is not TOML.

    Raises
    ------
    ConfigError
        If there is no ``=`` or no key.
    """
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"--set {text!r}: expected key=value, such as federation.rounds=5")
    try:
        return key.strip(), parse_toml(f"value = {value.strip()}", "--set", "a value", error=ConfigError)["value"]
    except ConfigError:
        return key.strip(), value.strip()


def assign(tree: dict[str, Any], dotted: str, value: Any, source: str) -> None:
    """Set a dotted key in nested tables; a parameter of a part takes the place of its other spelling.

    Raises
    ------
    ConfigError
        If the key goes through a value that is no table.
    """
    *parents, last = dotted.split(".")
    for depth, parent in enumerate(parents, start=1):
        child = tree.setdefault(parent, {})
        if ".".join(parents[:depth]) == METHODS:  # a table that is set over a list of names adds to it
            child = tree[parent] = method_tables(child)
        if not isinstance(child, dict):
            raise ConfigError(f"{source}: '{dotted}' goes through '{parent}', which is not a table")
        tree = child
    if parents and (parents[-1].endswith("parameters") or ".".join(parents[:2]) == METHODS):
        last = as_spelled(tree, last)
    tree[last] = set_over(tree.get(last, {}), value) if dotted == METHODS else value


def as_spelled(table: Mapping[str, Any], parameter: str) -> str:
    """Return the spelling that a table has of a parameter, which may be written with ``-`` or ``_``."""
    return next((key for key in table if key.replace("-", "_") == parameter.replace("-", "_")), parameter)


def load_config(
    path: str | Path | None = None,
    overrides: Mapping[str, Any] | Sequence[str] = (),
) -> RunConfig:
    """Read a scenario, apply overrides on top, and validate the whole.

    Parameters
    ----------
    path : str or Path, optional
        A TOML file; None for the defaults alone.
    overrides : mapping of str to value, or sequence of "key=value"
        Dotted keys, such as ``{"federation.rounds": 5}``.

    Returns
    -------
    RunConfig
        Frozen and complete.

    Raises
    ------
    InputError
        If the file cannot be read.
    ConfigError
        If it is not TOML (with the line), or a key or value is wrong.
    """
    tree: dict[str, Any] = {}
    source = "defaults"
    if isinstance(overrides, str):
        overrides = [overrides]
    if path is not None:
        source = str(path)
        text = as_text(read(Path(path), _SCENARIO, most=LARGEST_TOML), source, _SCENARIO, error=ConfigError)
        tree = parse_toml(text, source, _SCENARIO, error=ConfigError)
    pairs = (
        list(overrides.items()) if isinstance(overrides, Mapping) else [parse_assignment(text) for text in overrides]
    )
    for key, value in pairs:
        assign(tree, key, value, "--set")
    if pairs:
        source = f"{source} with --set {', '.join(key for key, _ in pairs)}"
    return config_from_mapping(tree, source)
