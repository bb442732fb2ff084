"""The results of a run: the models that it measured and saved, and their entries in ``metrics.json``."""

from __future__ import annotations

from typing import Any

from oblivion.aggregation.schemes.products import as_adapter
from oblivion.federation.accounting import in_units, rounded_otherwise
from oblivion.federation.measure import Trained, measure_model
from oblivion.federation.numbers import read_metrics, write_metrics
from oblivion.federation.opened import OpenRun
from oblivion.files import remove
from oblivion.ledger.adapters import note_adapter
from oblivion.models.loading import locate
from oblivion.models.resident import weight_bytes
from oblivion.types import Cost, ForgetRequest, GlobalState


class Results:
    """Measures and saves models of a run, and enters what was measured.

    Parameters
    ----------
    opened : OpenRun
        The run.
    """

    def __init__(self, opened: OpenRun) -> None:
        self.opened = opened

    def metrics(self) -> dict[str, Any]:
        """What ``metrics.json`` says."""
        return read_metrics(self.opened.run)

    def write_metrics(self, metrics: dict[str, Any]) -> None:
        """Write ``metrics.json``, with the rounds that were committed since."""
        write_metrics(self.opened.run, metrics, self.opened.config, self.opened.ledger, self.opened.head)

    def enter(self, entry: dict[str, Any]) -> None:
        """Write the entry of a request into ``metrics.json``, in place of the one that is there."""
        metrics = self.metrics()
        metrics["requests"] = [e for e in metrics["requests"] if e["id"] != entry["id"]] + [entry]
        self.write_metrics(metrics)

    def save_adapter(self, name: str, state: GlobalState) -> None:
        """Save a model's adapter as the folder `name` of the run directory, in PEFT format."""
        folder = self.opened.run.root / name
        remove(folder)  # what an interrupted removal left; metrics.json knows nothing of it
        adapter = as_adapter(state)
        note_adapter(self.opened.ledger.book, name, weight_bytes(adapter))
        self.opened.resident.save(adapter, folder, locate(self.opened.config.model))

    def head_files(self) -> dict[str, bytes]:
        """The files of the head's adapter folder, made from the ledger."""
        adapter = as_adapter(self.opened.federation.head(self.opened.head).state)
        return self.opened.resident.adapter_files(adapter, locate(self.opened.config.model))

    def original(self) -> Trained:
        """The model of the run's head, as it is before a request is answered."""
        head = self.opened.head
        state = self.opened.federation.head(head).state
        return Trained(name="original", state=state, folder=self.opened.head_folder, cost=in_units(self.cost(head)))

    def cost(self, branch: str, own: bool = False) -> Cost:
        """What the rounds of a branch cost; with `own`, only those that it does not share with its parent."""
        records = self.opened.ledger.records(branch)
        return sum((record.cost for record in records if not own or record.branch == branch), Cost())

    def entry_of(self, model: Trained, request: ForgetRequest | None) -> dict[str, Any]:
        """Measure a model; return its entry in ``metrics.json``."""
        run = self.opened
        exclusions = run.register.exclusions()
        return measure_model(model, request, run.run, run.data, run.resident, run.federation, exclusions)

    def measured(self, model: Trained, request: ForgetRequest, entry: dict[str, Any]) -> dict[str, Any]:
        """Measure a model for a request; its entry also says why its rounds may be rounded differently, if they may."""
        run = self.opened
        branches = [name for name in (run.head, f"{request.id}/{model.name}") if run.has(name)]
        records = [record for name in branches for record in run.ledger.records(name)]
        own = rounded_otherwise(run.resident.repeats_bits, records)
        rounding = own or entry["models"].get("oracle", {}).get("rounding")
        return {**self.entry_of(model, request), **({"rounding": rounding} if rounding else {})}

    def measure(self, model: Trained, request: ForgetRequest, entry: dict[str, Any]) -> None:
        """Measure a model and write it into the request's entry in ``metrics.json``."""
        entry["models"][model.name] = self.measured(model, request, entry)
        self.enter(entry)
