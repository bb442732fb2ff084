"""The results of a run: the models that it measured and saved, and their entries in ``metrics.json``."""

from __future__ import annotations

from oblivion.aggregation.schemes.products import as_adapter
from oblivion.errors import InputError
from oblivion.federation.accounting import in_units, rounded_otherwise
from oblivion.federation.measure import Trained, measure_model
from oblivion.federation.opened import OpenRun
from oblivion.federation.spending import privacy_values
from oblivion.files import remove
from oblivion.learners import models_of
from oblivion.ledger.adapters import note_adapter
from oblivion.ledger.requests import ID
from oblivion.models.adapter_folder import CONFIG
from oblivion.models.resident import weight_bytes
from oblivion.run.events import round_entry
from oblivion.run.records import (
    METRICS,
    VERSION,
    ModelRecord,
    RequestRecord,
    RoundEntry,
    RunRecord,
    read_run_record,
)
from oblivion.types import Cost, ForgetRequest, GlobalState
from oblivion.untrusted import shown


class Results:
    """Measures and saves models of a run, and enters what was measured.

    Parameters
    ----------
    opened : OpenRun
        The run.
    """

    def __init__(self, opened: OpenRun) -> None:
        self.opened = opened

    def record(self) -> RunRecord:
        """Return what ``metrics.json`` says; empty numbers where there is none yet.

        Raises
        ------
        InputError
            If the file is not what a run writes. A commit looks for files by the ids of requests and erases them, and
            anybody may have edited the file, so the ids must have the form that the program gives them.
        """
        root = self.opened.run.root
        record = read_run_record(root) if (root / METRICS).exists() else RunRecord(scenario=root.name)
        for request in record.requests:
            if not ID.fullmatch(request.id):
                raise InputError(
                    f"{root / METRICS}: {shown(request.id)} is no id of a request (req- and 12 hex digits); restore "
                    "the file that the run wrote"
                )
        return record

    def write(self, record: RunRecord) -> None:
        """Write ``metrics.json``, with the rounds that were committed since."""
        run = self.opened
        known, history = {(entry.branch, entry.round) for entry in record.history}, list(record.history)
        for branch in run.ledger.branches():
            for committed in run.ledger.records(branch.name):
                if committed.branch == branch.name and (branch.name, committed.round) not in known:
                    history.append(RoundEntry(**round_entry(committed)))
        record = record.but(version=VERSION, history=tuple(history), requests=record.requests)
        privacy = privacy_values(run.config, run.ledger, run.head)
        if privacy is not None:
            record = record.but(privacy=privacy)
        run.run.write_json(METRICS, record.to_json())

    def enter(self, entry: RequestRecord) -> None:
        """Write the entry of a request into ``metrics.json``, in place of the one that is there."""
        self.write(self.record().with_request(entry))

    def save_adapter(self, name: str, state: GlobalState) -> None:
        """Save a model's adapter as the folder `name` of the run directory, in PEFT format."""
        folder = self.opened.run.root / name
        remove(folder)  # what an interrupted removal left; metrics.json knows nothing of it
        adapter = as_adapter(state)
        note_adapter(self.opened.ledger.book, name, weight_bytes(adapter))
        self.opened.resident.save(adapter, folder, self._base())

    def head_settings(self) -> bytes:
        """Return the settings file of the head's adapter folder, made anew from the ledger and the base model."""
        adapter = as_adapter(self.opened.replay.head(self.opened.head).state)
        return self.opened.resident.adapter_files(adapter, self._base())[CONFIG]

    def _base(self) -> str:
        """Return where the base model of the run is."""
        return models_of(self.opened.config.model).locate(self.opened.config.model)

    def original(self) -> Trained:
        """The model of the run's head, as it is before a request is answered."""
        head = self.opened.head
        state = self.opened.federation.head(head).state
        cost, folder = in_units(self.cost(head)), self.opened.head_folder
        return Trained(name="original", state=state, folder=folder, cost=cost, branch=head)

    def cost(self, branch: str, own: bool = False) -> Cost:
        """What the rounds of a branch cost; with `own`, only those that it does not share with its parent."""
        records = self.opened.ledger.records(branch)
        return sum((record.cost for record in records if not own or record.branch == branch), Cost())

    def entry_of(self, model: Trained, request: ForgetRequest | None) -> ModelRecord:
        """Measure a model; return its entry in ``metrics.json``."""
        run = self.opened
        exclusions = run.register.exclusions()
        return measure_model(model, request, run.run, run.data, run.resident, run.federation, exclusions)

    def measured(self, model: Trained, request: ForgetRequest, entry: RequestRecord) -> ModelRecord:
        """Measure a model for a request; its entry also says why its rounds may be rounded differently, if they may."""
        run = self.opened
        branches = [name for name in (run.head, f"{request.id}/{model.name}") if run.has(name)]
        records = [record for name in branches for record in run.ledger.records(name)]
        rounding = rounded_otherwise(run.resident.repeats_bits, records)
        if not rounding and "oracle" in entry.models:
            rounding = entry.models["oracle"].rounding
        found = self.entry_of(model, request)
        return found.but(rounding=rounding) if rounding else found

    def measure(self, model: Trained, request: ForgetRequest, entry: RequestRecord) -> RequestRecord:
        """Measure a model; write it into the request's entry in ``metrics.json``, and return the entry."""
        entry = entry.with_model(model.name, self.measured(model, request, entry))
        self.enter(entry)
        return entry
