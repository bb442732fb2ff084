"""The typed records of what the JSON files of a run hold: ``metrics.json``, ``manifest.json`` and the plans of trials.

There is one reader and one writer: whoever needs a number of a run reads it from a record, and whoever measures one
makes a record. A record writes exactly the keys that it was given, so a file that is read and written again stays as
it is. Unknown keys are passed over.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, StrictFloat, StrictInt, ValidationError

from oblivion.errors import InputError
from oblivion.provenance import Package
from oblivion.run_format import ORIGINAL
from oblivion.untrusted import read_json
from oblivion.validation import faults

VERSION = 1
"""The version of the layout of ``metrics.json``."""
METRICS = "metrics.json"
MANIFEST = "manifest.json"
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]")
_REMEDY = "restore the file that the run wrote"


def clean(text: str) -> str:
    """Replace the characters that no HTML file may hold."""
    return _CONTROL.sub("\ufffd", text)


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _finite_pair(value: Any) -> Any:
    if isinstance(value, list | tuple) and any(part is None or _finite(part) is None for part in value):
        return None
    return value


def _inside(folder: str) -> str:
    path = PurePosixPath(folder)
    if not path.parts or path.is_absolute() or ".." in path.parts:
        raise ValueError("expected a folder of the run directory")
    return folder


Text = Annotated[str, BeforeValidator(lambda value: clean(value) if isinstance(value, str) else value)]
Folder = Annotated[str, AfterValidator(_inside)]
Number = Annotated[StrictInt | StrictFloat | None, BeforeValidator(_finite)]
Interval = Annotated[tuple[float, float] | None, BeforeValidator(_finite_pair)]


class Record(BaseModel):
    """A part of a file."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    def to_json(self) -> dict[str, Any]:
        """Return the keys that the record was given, as plain values."""
        return self.model_dump(mode="json", exclude_unset=True)

    def but(self, **changes: Any) -> Self:
        """Return the same record with other values."""
        return self.model_copy(update=changes)


class Measure(Record):
    """One number: `value` is None where there is none, for a `reason`; its 95 % interval, and its rows `n`.

    `detectable` is what forget quality can detect with so many rows, as a KS statistic; `left_out` counts the rows for
    which the number is not defined; `components` are the numbers that a mean is made of.
    """

    value: Number = None
    interval: Interval = None
    n: Number = None
    reason: Text = ""
    detectable: Number = None
    left_out: Number = None
    components: dict[Text, Number] = {}


class CostRecord(Record):
    """What it took to make a model; `fraction` (of client-steps) and `token_fraction` are in units of retraining."""

    client_steps: Number = None
    tokens: Number = None
    bytes_up: Number = None
    bytes_down: Number = None
    fraction: Number = None
    token_fraction: Number = None


class ChecklistEntry(Record):
    """One item of a removal's checklist: what happens to a place where the client left something, and why."""

    item: Text
    status: Text
    why: Text = ""


class ModelRecord(Record):
    """One model: what was learned, an oracle, or what a removal made.

    `adapter` is its folder in the run directory, None once it was erased. `central` holds what the server measured,
    `clients` what each client measured of its own rows, and `checklist` what the removal says of every place where the
    data left something. `rounding` says why its rounds may be rounded differently when they are run again, if they may.
    """

    label: Text = ""
    guarantee: Text | None = None
    adapter: Folder | None = None
    central: dict[Text, Measure] = {}
    clients: dict[Text, dict[Text, Measure]] = {}
    cost: CostRecord = CostRecord()
    checklist: tuple[ChecklistEntry, ...] = ()
    rounding: Text = ""


class RequestRecord(Record):
    """One request to forget, and the models that belong to it.

    `samples` is the number of rows that are asked for, None for the whole client, and `sample_ids` names them; `rows`
    counts the rows in either case. `shared` are the ids of the rows that others hold, too. `t_u` is the first round
    that the data had a part in, and `first_update` the first whose update was accepted. `never` says why nothing of
    the data was learned, where that is so. `committed` is the trial that answered the request.
    """

    id: Text
    client: Text
    samples: int | None = None
    sample_ids: tuple[str, ...] | None = None
    rows: int | None = None
    shared: tuple[Text, ...] = ()
    t_u: int | None = None
    first_update: int | None = None
    never: Text = ""
    models: dict[Text, ModelRecord] = {}
    committed: Text | None = None
    committed_at: Text | None = None

    def label(self, key: str) -> str:
        """Return what readers call the model `key`."""
        return self.models[key].label or key

    def with_model(self, key: str, model: ModelRecord) -> Self:
        """Return the record with one more model, or another one of that name."""
        return self.but(models={**self.models, key: model})


class RoundEntry(Record):
    """One committed round.

    `loss` is the mean over its clients, in nats per token; `scheme_error` is what the LoRA scheme lost of the clients'
    mean change, as a fraction of it. `clients`, `refused` and `failed` count clients.
    """

    branch: Text
    round: int
    loss: Number = None
    scheme_error: Number = None
    clients: Number = None
    refused: Number = None
    failed: Number = None
    seconds: Number = None


class PrivacyRound(Record):
    """Epsilon after one round, over everything that was done before it; None for no bound."""

    branch: Text
    round: int
    epsilon: Number = None


class ForgettingBound(Record):
    """How far the model can be from one without some clients' updates, with nothing done about it."""

    clients: int
    epsilon: Number = None
    delta: Number = None
    gaussian_epsilon: Number = None


class PrivacyRecord(Record):
    """What a run says of differential privacy."""

    unit: Text
    noise_multiplier: Number = None
    clip_norm: Number = None
    delta: Number = None
    max_epsilon: Number = None
    epsilon: Number = None
    rounds: tuple[PrivacyRound, ...] = ()
    forgetting: tuple[ForgettingBound, ...] = ()


class RunRecord(Record):
    """The file ``metrics.json``: the numbers of a run.

    `learned` is the model of a run in which nobody asked to be forgotten. `head` is the folder of the adapter that a
    committed removal made; before one, it is the adapter that was learned.
    """

    version: Literal[1] = 1
    scenario: Text = ""
    requests: tuple[RequestRecord, ...] = ()
    history: tuple[RoundEntry, ...] = ()
    learned: ModelRecord | None = None
    head: Folder = ORIGINAL
    privacy: PrivacyRecord | None = None

    def request(self, id: str) -> RequestRecord | None:
        """Return the request of this id, if the run knows it."""
        return next((request for request in self.requests if request.id == id), None)

    def with_request(self, request: RequestRecord) -> Self:
        """Return the record with one more request, or another state of one, as the last."""
        return self.but(requests=(*(other for other in self.requests if other.id != request.id), request))

    def adapter(self, model: str) -> str | None:
        """Return the folder of a model's adapter in the run directory; None if there is none, or it was erased.

        `model` is ``"original"`` for the head of the run, or ``"<request>/<name>"``.
        """
        if model == "original":
            return self.head
        id, _, name = model.partition("/")
        request = self.request(id)
        return request.models[name].adapter if request and name in request.models else None


class MachineRecord(Record):
    """The kind of machine that a run began on; `deterministic` says whether its training repeats the same bits."""

    model_config = ConfigDict(extra="allow", frozen=True)

    deterministic: bool | None = None


class ManifestRecord(Record):
    """The file ``manifest.json``: what a run was made with.

    `clients` holds the number of rows of each client, and `unfit_rows` the ids of the rows that are too long for the
    model; None where the run did not note them.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    code_fingerprint: Text | None = None
    packages: tuple[Package, ...] = ()
    packages_added: tuple[Package, ...] = ()
    data_digest: Text | None = None
    model_digest: Text | None = None
    clients: dict[str, int] = {}
    client_digests: dict[str, str] = {}
    unfit_rows: dict[str, tuple[str, ...]] | None = None
    machine: MachineRecord = MachineRecord()


class PhaseEntry(Record):
    """One phase of a plan; what else it says depends on its `kind`, and is kept as it is."""

    model_config = ConfigDict(extra="allow", frozen=True)

    kind: Text
    round: int | None = None


class PlanRecord(Record):
    """The file ``plan.json`` of a trial: what the removal does, what it promises and what it costs.

    `from_round` is the first round that the data had a part in, and `invalidates` names what a commit erases.
    `client_steps` is an estimate, and `fraction` the same in units of retraining.
    """

    method: Text
    name: Text = ""
    label: Text
    guarantee: Text
    from_round: int
    phases: tuple[PhaseEntry, ...]
    checklist: tuple[ChecklistEntry, ...]
    client_steps: int
    fraction: float
    invalidates: tuple[Text, ...]
    shared: tuple[Text, ...] = ()

    @property
    def restored_round(self) -> int | None:
        """The round whose state the removal goes back to; None where it goes on from the head."""
        return self.phases[0].round if self.phases and self.phases[0].kind == "restore" else None


R = TypeVar("R", bound=Record)


def read_record(kind: type[R], path: Path, expected: str) -> R:
    """Read a file as the record that it holds.

    Parameters
    ----------
    kind : type of Record
        What the file holds.
    path : Path
        The file.
    expected : str
        What the file should be, for messages.

    Raises
    ------
    InputError
        If the file cannot be read, is not JSON, or has a key that is missing or wrong: with the file, the key and what
        is expected there.
    """
    return check_record(kind, read_json(path, expected), str(path))


def check_record(kind: type[R], values: Any, where: str) -> R:
    """Check plain values as the record that they stand for; see `read_record`."""
    if kind is RunRecord and isinstance(values, Mapping):
        _check_version(values.get("version", VERSION), where)
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        fault, key, value, said = next(faults(kind, error))
        place = f"{key} {said}" if fault == "missing" else f"{key or 'top level'} = {value}: {said}"
        raise InputError(f"{where}: {place}; {_REMEDY}") from None


def _check_version(version: Any, where: str) -> None:
    if version != VERSION or isinstance(version, bool):
        raise InputError(
            f"{where}: version = {version!r:.40}: this version of oblivion reads version {VERSION}; use the one that "
            "manifest.json of the run names"
        )


def read_run_record(directory: Path) -> RunRecord:
    """Read ``metrics.json`` of a run; see `read_record`."""
    return read_record(RunRecord, directory / METRICS, "the metrics of a finished run")


def read_manifest(directory: Path) -> ManifestRecord:
    """Read ``manifest.json`` of a run, empty where there is none; see `read_record`."""
    path = directory / MANIFEST
    return read_record(ManifestRecord, path, "what the run was made with") if path.exists() else ManifestRecord()


def read_plan(directory: Path, trial: str) -> PlanRecord:
    """Read the plan of a trial, ``"<request>/<name>"``; see `read_record`."""
    return read_record(PlanRecord, directory / "forgets" / trial / "plan.json", "the plan of a trial")
