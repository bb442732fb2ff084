"""A run directory as the report sees it: checked numbers, ids and settings, never the text of a data set."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from oblivion.errors import InputError
from oblivion.outside import parse_json, read, read_json, read_toml
from oblivion.run_format import check_format
from oblivion.validation import faults

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]")
_MOST_EVENTS, _LONGEST_EVENT = 2**30, 2**20
"""Bytes of all events, and of one; a longer one cannot be read."""
COUNTED_EVENTS = ("refused", "failed")


def clean(text: str) -> str:
    """Replace characters that no HTML file may hold; everything else is left to the escaping of the page."""
    return CONTROL.sub("\ufffd", text)


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _finite_pair(value: Any) -> Any:
    if isinstance(value, list | tuple) and any(part is None or _finite(part) is None for part in value):
        return None
    return value


Text = Annotated[str, BeforeValidator(lambda value: clean(value) if isinstance(value, str) else value)]
Number = Annotated[float | None, BeforeValidator(_finite)]
Interval = Annotated[tuple[float, float] | None, BeforeValidator(_finite_pair)]


class _Record(BaseModel):
    # Unknown keys are passed over: a newer writer may add some, and the report shows what it knows.
    model_config = ConfigDict(extra="ignore", frozen=True)


class Measure(_Record):
    """One number: `value` is None where there is none, for a `reason`; its 95 % interval, and its rows `n`.

    `detectable` is what forget quality can detect with so many rows, as a KS statistic.
    """

    value: Number = None
    interval: Interval = None
    n: Number = None
    reason: Text = ""
    detectable: Number = None


class ModelCost(_Record):
    """What it took to make a model; `fraction` (of client-steps) and `token_fraction` are in units of retraining."""

    client_steps: Number = None
    tokens: Number = None
    bytes_up: Number = None
    bytes_down: Number = None
    fraction: Number = None
    token_fraction: Number = None


class Touch(_Record):
    """One line of a removal's checklist."""

    item: Text
    status: Text
    why: Text = ""


class ModelRecord(_Record):
    """One model of a request: the original, an oracle, or what a removal made."""

    label: Text = ""
    guarantee: Text | None = None
    rounding: Text = ""
    central: dict[Text, Measure] = {}
    clients: dict[Text, dict[Text, Measure]] = {}
    cost: ModelCost = ModelCost()
    touches: tuple[Touch, ...] = ()


class RequestRecord(_Record):
    """One request to forget, and the models that belong to it; `shared` are ids of rows that others hold, too."""

    id: Text
    client: Text
    samples: int | None = None
    rows: int | None = None
    shared: tuple[Text, ...] = ()
    t_u: int | None = None
    first_update: int | None = None
    never: Text = ""
    committed: Text | None = None
    committed_at: Text | None = None
    models: dict[Text, ModelRecord] = {}

    def label(self, key: str) -> str:
        """What readers call the model `key`."""
        return self.models[key].label or key


class RoundRecord(_Record):
    """One committed round.

    `loss` is the mean over its clients, in nats per token; `scheme_error` is what the LoRA scheme lost of the clients'
    mean change, as a fraction of it.
    """

    branch: Text
    round: int
    loss: Number = None
    scheme_error: Number = None
    clients: Number = None
    refused: Number = None
    failed: Number = None
    seconds: Number = None


class PrivacyRound(_Record):
    """Epsilon after one round, over everything that was done before it; None for no bound."""

    branch: Text
    round: int
    epsilon: Number = None


class ForgettingBound(_Record):
    """How far the model can be from one without some clients' updates, with nothing done about it."""

    clients: int
    epsilon: Number = None
    delta: Number = None
    gaussian_epsilon: Number = None


class PrivacyRecord(_Record):
    """What a run says of differential privacy."""

    unit: Text
    noise_multiplier: Number = None
    clip_norm: Number = None
    delta: Number = None
    max_epsilon: Number = None
    epsilon: Number = None
    rounds: tuple[PrivacyRound, ...] = ()
    forgetting: tuple[ForgettingBound, ...] = ()


class Metrics(_Record):
    """The file ``metrics.json``; `learned` is the model of a run in which nobody asked to be forgotten."""

    scenario: Text = ""
    requests: tuple[RequestRecord, ...] = ()
    learned: ModelRecord | None = None
    history: tuple[RoundRecord, ...] = ()
    privacy: PrivacyRecord | None = None


@dataclass(frozen=True, kw_only=True)
class Events:
    """What the report tells of ``events.jsonl``.

    Attributes
    ----------
    counts : mapping of str to int
        How often something was refused, and how often something failed.
    warnings : mapping of str to int
        Text of a warning, to how often it came; in order of first appearance.
    unreadable : int
        Lines that are not JSON (a killed run may leave one).
    """

    counts: Mapping[str, int]
    warnings: Mapping[str, int]
    unreadable: int = 0


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run directory; `manifest` and `config` are (dotted key, value) rows, None for a missing file."""

    name: str
    metrics: Metrics
    manifest: tuple[tuple[str, str], ...] | None
    config: tuple[tuple[str, str], ...] | None
    events: Events | None


def flatten(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Nested tables as (dotted key, value as text) rows, in the order of the file."""
    if isinstance(value, Mapping) and value:
        return [
            row for key, inner in value.items() for row in flatten(inner, f"{prefix}.{key}" if prefix else str(key))
        ]
    shown = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return [(clean(prefix), clean(shown))]


def _read_metrics(directory: Path) -> Metrics:
    path = directory / "metrics.json"
    remedy = "give the directory of a finished run"
    values = read_json(path, "the metrics of a finished run")
    try:
        return Metrics.model_validate(values)
    except ValidationError as error:
        _, where, value, said = next(faults(Metrics, error))
        raise InputError(f"{path}: {where or 'top level'} = {value}: {said}; {remedy}") from None


def _read_manifest(directory: Path) -> tuple[tuple[str, str], ...] | None:
    path = directory / "manifest.json"
    if not path.exists():
        return None
    remedy = "restore the file that the run wrote"
    manifest = read_json(path, f"what the run wrote; {remedy}")
    if not isinstance(manifest, dict):
        raise InputError(f"{path}: expected an object, found {type(manifest).__name__}; {remedy}")
    return tuple(flatten(manifest)) if manifest else ()


def _read_config(directory: Path) -> tuple[tuple[str, str], ...] | None:
    path = directory / "config.toml"
    if not path.exists():
        return None
    remedy = "restore the file that the run wrote"
    config = read_toml(path, f"what the run wrote; {remedy}")
    return tuple(flatten(config)) if config else ()


def _read_events(directory: Path) -> Events | None:
    path = directory / "events.jsonl"
    if not path.exists():
        return None
    counts: Counter[str] = Counter(dict.fromkeys(COUNTED_EVENTS, 0))
    warnings: Counter[str] = Counter()
    unreadable = 0
    for line in read(path, "the events that the run wrote: restore the file", most=_MOST_EVENTS).splitlines():
        if not line.strip():
            continue
        try:
            record = parse_json(line[:_LONGEST_EVENT], str(path), "an event")
        except InputError:
            record = None
        if not isinstance(record, dict):
            unreadable += 1
            continue
        # "refused" and "update.refused" are the same kind of event.
        kind = str(record.get("event", "")).rsplit(".", 1)[-1]
        if kind in counts:
            counts[kind] += 1
        elif kind == "warning":
            text = next((record[key] for key in ("message", "text", "note") if record.get(key)), "(no text)")
            warnings[clean(str(text))] += 1
    return Events(counts=dict(counts), warnings=dict(warnings), unreadable=unreadable)


def read_run(directory: Path) -> Run:
    """Read what a run left behind.

    Parameters
    ----------
    directory : Path
        A run directory. ``metrics.json`` must be there; the other files are shown if they are.

    Returns
    -------
    Run
        Everything the report shows, checked.

    Raises
    ------
    InputError
        Naming the file, what is wrong with it, and what to do.
    """
    directory = Path(directory)
    check_format(directory)
    return Run(
        name=clean(directory.resolve().name),
        metrics=_read_metrics(directory),
        manifest=_read_manifest(directory),
        config=_read_config(directory),
        events=_read_events(directory),
    )
