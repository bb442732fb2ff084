"""The workflow: learn, answer requests to forget with several removals, measure each, report.

Free of Flower: it runs the same on every engine. Everything in it can be interrupted and done again: what the ledger
and the run directory hold already is not repeated.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from oblivion.aggregation.products import as_adapter
from oblivion.config import RunConfig
from oblivion.data.corpus import FederatedData
from oblivion.data.keyed_ids import run_data
from oblivion.errors import InputError
from oblivion.files import remove
from oblivion.ledger.adapters import note_adapter
from oblivion.ledger.opening import open_ledger
from oblivion.ledger.register import MAIN, Asked
from oblivion.ledger.requests import issue
from oblivion.ledger.rounds import Absence, Branch, RoundRecord
from oblivion.models.loading import locate
from oblivion.models.resident import load_resident, weight_bytes
from oblivion.removal.plan import LearnPhase, RemovalPlan, Situation, from_round, in_short
from oblivion.training.fused import fusible
from oblivion.types import Cost, ForgetRequest, GlobalState
from server.absence import never_took_part, refusal, to_replay
from server.accounting import in_units, rounded_otherwise
from server.events import Observer
from server.fitting import beforehand, nothing_fits, unfit
from server.hosts import Hosts
from server.measure import Trained, measure_model
from server.numbers import read_metrics, write_metrics
from server.planning import make_plan, make_situation, oracle_seeds, plan_values, present, request_entry
from server.rounds import Federation
from server.run_directory import RunDirectory, to_json
from server.spending import check_removals, spent

ORIGINAL = "adapters/original"


class Workflow:
    """One run, from learning to the measured answer of a request. It has the run's ledger until `close`.

    Parameters
    ----------
    config : RunConfig
        Resolved.
    hosts : Hosts
        The engine's way to its hosts.
    run : RunDirectory
        Where results go; it exists.
    observer : Observer
        Who is told what happens.
    wait : float, default 0
        Seconds to wait for another process that works on the run.
    """

    def __init__(
        self, config: RunConfig, hosts: Hosts, run: RunDirectory, observer: Observer, wait: float = 0.0
    ) -> None:
        self.config = config
        self.run = run
        self.observer = observer
        self.ledger, self.register = open_ledger(run.root, config.ledger, wait)
        try:
            if ahead := self.ledger.book.ahead():
                observer.event("warning", text=ahead)
            whole = self._whole()
            self.data = present(whole, self.register.exclusions())
            self.resident = load_resident(config.model, config.lora, config.train.max_length)
            self.initial = self.resident.initial_adapter(config.seed)
            self.federation = Federation(config, hosts, self.ledger, self.initial, observer)
            self.federation.id_keys = whole.keys
            self.federation.context = self.resident.max_length
            self.federation.describe({client: len(rows) for client, rows in whole.clients.items()})
            # As they were at the beginning, so that cohorts are what they were: forgotten rows may be gone since.
            gone = Branch(name="", seed=0, rounds=0, absent=self.register.exclusions())
            for client in self.data.clients:  # the same row twice may have one id
                copies = self.federation.copies[client] = Counter(row.id for row in whole.clients[client])
                self.federation.sizes[client] = copies.total() + len(set(gone.excluded(client)) - copies.keys())
            self._leave_out_who_left()
            self.register.enrol_simulated(self.federation.sizes, self.data.names)
        except BaseException:
            self.close()
            raise

    def _whole(self) -> FederatedData:
        """The data of the run, as its source has it."""
        gone = [absence.client for absence in self.register.exclusions() if absence.samples is None]
        return run_data(self.run.root, self.config, gone)

    def present_data(self) -> FederatedData:
        """The data of the run without what it has forgotten by now."""
        return present(self._whole(), self.register.exclusions())

    def reload(self) -> None:
        """Go by the exclusions as they are now."""
        self.data = self.present_data()
        self.federation.forget_heads()
        self._leave_out_who_left()

    def _leave_out_who_left(self) -> None:
        """Nobody who was forgotten is among the clients of a round that stays, also if its source still has it."""
        for client in (absence.client for absence in self.register.exclusions() if absence.samples is None):
            self.federation.sizes.pop(client, None)

    def close(self) -> None:
        """Leave the run to others."""
        self.ledger.close()

    @property
    def head(self) -> str:
        """The branch that the run stands on: what was learned, or the last removal that was committed."""
        return self.register.head()

    def learn(self) -> None:
        """Run every round of the federation that is not there yet, and keep the result."""
        if self.head != MAIN:
            return
        self.federation.begin(
            Branch(name=MAIN, seed=self.config.seed, rounds=self.config.federation.rounds), self.initial
        )
        if self.federation.head(MAIN).round == 0:
            for text in beforehand(self.config, self.data):
                self.observer.event("warning", text=text)
        reason = fusible(self.resident)
        if self.config.privacy.unit == "sample":
            reason = "privacy.unit = 'sample' takes the gradient of every sample by itself"
        if reason is not None:
            self.observer.event("warning", text=f"clients are trained one by one: {reason}")
        if self.resident.left_out:
            layers = ", ".join(self.resident.left_out)
            self.observer.event("warning", text=f"these layers carry no adapter, see docs/models.md: {layers}")
        while self.federation.head(MAIN).round < self.config.federation.rounds:
            self.federation.run_round(MAIN)
        self._keep_original()
        self.write_metrics(self.metrics())

    def _keep_original(self) -> None:
        """Save what was learned, if a crash came before that."""
        if self.head == MAIN and not (self.run.root / ORIGINAL).is_dir():
            self._save_adapter(ORIGINAL, self.federation.head(MAIN).state)

    def check_learned(self) -> None:
        """Refuse a run whose learning has not finished.

        Raises
        ------
        InputError
            Saying how to finish it.
        """
        records = self.ledger.records(self.head) if self.federation.has(self.head) else ()
        done = records[-1].round if records else 0
        if done < self.config.federation.rounds:
            raise InputError(
                f"{self.run.root} has {done} of {self.config.federation.rounds} rounds, so there is nothing to forget "
                f"yet; finish it with: oblivion run --resume --out {self.run.root}"
            )

    def _save_adapter(self, name: str, state: GlobalState) -> None:
        folder = self.run.root / name
        remove(folder)  # what an interrupted removal left; metrics.json knows nothing of it
        adapter = as_adapter(state)
        note_adapter(self.ledger.book, name, weight_bytes(adapter))
        self.resident.save(adapter, folder, locate(self.config.model))

    def head_files(self) -> dict[str, bytes]:
        """The files of the head's adapter folder, made from the ledger."""
        adapter = as_adapter(self.federation.head(self.head).state)
        return self.resident.adapter_files(adapter, locate(self.config.model))

    def receive(self, wanted: ForgetRequest) -> Asked:
        """The open request for exactly this, or a new one: signed already, or by the simulated client's key."""
        if wanted.signature:
            return self.register.receive(wanted)
        known = self.register.open_request(wanted.client_id, wanted.sample_ids)
        if known is not None:
            return known
        key = self.register.simulated_key(wanted.client_id)
        now = self.ledger.book.now()
        return self.register.receive(issue(wanted.client_id, wanted.sample_ids, key, self.register.federation, now))

    def plan(self, request: ForgetRequest, method: str) -> RemovalPlan:
        """Plan a removal without running anything.

        Raises
        ------
        PlanRefusedError
            If nothing of the data is in the model, or the removal cannot be done.
        """
        if never := self._never(request):
            raise refusal(self.run.root, request, never)
        return make_plan(self.config, request, self._situation(request), method)

    def check_budget(self, request: ForgetRequest, plans: Sequence[RemovalPlan], oracles: Sequence[str] = ()) -> None:
        """Refuse removals that the privacy budget has no room for."""
        check_removals(spent(self.config, self.ledger), self.config, self._situation(request).samples, oracles, plans)

    def _situation(self, request: ForgetRequest) -> Situation:
        records, restorable = self.ledger.records(self.head), self.ledger.restorable(self.head)
        rounding = rounded_otherwise(self.resident.repeats_bits, records)
        rows = unfit(self.config, self.data, request.client_id)
        return make_situation(self.config, self.data, request, records, restorable, rows, rounding)

    def _never(self, request: ForgetRequest) -> str:
        """Why nothing of the data is in the model, in words; empty where something may be."""
        asked = never_took_part(self.ledger.records(self.head), request.client_id)
        return nothing_fits(self.config, self.data, request) or asked

    def measure_learned(self) -> None:
        """Measure the learned model where nobody asks to be forgotten."""
        metrics = self.metrics()
        if "learned" not in metrics:
            metrics["learned"] = self._entry_of(self._original(), None)
            self.write_metrics(metrics)

    def answer(self, asked: Asked, methods: Sequence[str]) -> dict[str, str]:
        """Try removals on a request and measure each beside the original and the oracle.

        Returns
        -------
        dict
            Method to the name of its trial; a trial that exists already is not run again.
        """
        self._keep_original()
        request = asked.request
        entry = self._request_entry(request)
        if "never" in entry:
            self._enter(entry)
            raise refusal(self.run.root, request, entry["never"])
        plans = {method: self.plan(request, method) for method in methods}
        names = {method: self._trial_name(entry, plan) for method, plan in plans.items()}
        new = [plan for method, plan in plans.items() if names[method] not in entry["models"]]
        self.check_budget(request, new, [name for name in oracle_seeds(self.config) if name not in entry["models"]])
        if "shared" in entry and not entry["models"]:
            text = f"of what {request.client_id} asks to be forgotten, others also hold {in_short(entry['shared'])}: "
            self.observer.event("warning", text=text + "that stays learned from them, and is measured separately")
        if plans and asked.state == "received":
            self.register.move(request.id, "planned")
        self._measure_oracles(request, entry)
        if "original" not in entry["models"]:
            self._measure(self._original(), request, entry)
        for method, plan in plans.items():
            if names[method] not in entry["models"]:
                self._try(names[method], plan, request, entry)
        return names

    def _original(self) -> Trained:
        """The model of the run's head, as it is before a request is answered."""
        state = self.federation.head(self.head).state
        return Trained(name="original", state=state, folder=self.head_folder, cost=in_units(self._cost(self.head)))

    @property
    def head_folder(self) -> str:
        """Where the adapter of the run's head lies in the run directory."""
        return ORIGINAL if self.head == MAIN else f"forgets/{self.head}/adapters"

    def _request_entry(self, request: ForgetRequest) -> dict[str, Any]:
        for entry in self.metrics()["requests"]:
            if entry["id"] == request.id:
                return dict(entry)
        return request_entry(self.data, request, self._situation(request), self._never(request))

    def _trial_name(self, entry: Mapping[str, Any], plan: RemovalPlan) -> str:
        """The trial of this very plan if there is one, else a new name."""
        content = json.loads(to_json(plan_values(plan)))
        number = 1
        while True:
            name = plan.method if number == 1 else f"{plan.method}-{number}"
            known = self.run.read_json(f"forgets/{entry['id']}/{name}/plan.json", None)
            if name not in entry["models"] or known == content:
                return name
            number += 1

    def _absent(self, request: ForgetRequest) -> tuple[Absence, ...]:
        asked = Absence(client=request.client_id, samples=request.sample_ids)
        before = self.register.exclusions()
        if request.whole_client:  # then what of its samples was forgotten before need not be named any more
            before = tuple(absence for absence in before if absence.client != request.client_id)
        return (*before, asked)

    def _records_to_replay(self, t_u: int) -> dict[int, RoundRecord]:
        return to_replay(self.ledger.records(self.head), t_u)

    def _rounds(self, branch: str, last: int, replayed: Mapping[int, RoundRecord]) -> None:
        while self.federation.head(branch).round < last:
            self.federation.run_round(branch, replayed.get(self.federation.head(branch).round + 1))

    def _measure_oracles(self, request: ForgetRequest, entry: dict[str, Any]) -> None:
        """Train the federation that never saw the data, once per seed; the first seed is the run's own."""
        rounds = self.config.federation.rounds
        for index, (name, seed) in enumerate(oracle_seeds(self.config).items()):
            branch = f"{request.id}/{name}"
            if name not in entry["models"]:
                self.observer.event("phase", text=f"training the {name}: the federation without the data to forget")
                start = self.initial if index == 0 else self.resident.initial_adapter(seed)
                absent = self._absent(request)
                oracle = Branch(name=branch, seed=seed, rounds=rounds, absent=absent, history=False)
                self.federation.begin(oracle, start)
                t_u = from_round(request, self._situation(request))
                self._rounds(branch, rounds, self._records_to_replay(t_u) if index == 0 else {})
                state, cost = self.federation.head(branch).state, self._cost(branch)
                units = in_units(cost, dataclasses.asdict(cost))
                folder = f"adapters/{name}-{request.id}"
                self._save_adapter(folder, state)
                self._measure(Trained(name=name, state=state, folder=folder, cost=units), request, entry)
            if self.federation.has(branch):
                self.federation.forget_branch(branch)

    def _try(self, name: str, plan: RemovalPlan, request: ForgetRequest, entry: dict[str, Any]) -> None:
        """Carry a plan out on a branch of its own, and measure it."""
        self.observer.event("phase", text=f"removal {plan.label} (guarantee: {plan.guarantee})")
        self.register.move(request.id, "running")
        where, branch = f"forgets/{request.id}/{name}", f"{request.id}/{name}"
        content = json.loads(to_json(plan_values(plan)))
        if self.federation.has(branch) and self.run.read_json(f"{where}/plan.json", None) != content:
            self.federation.forget_branch(branch)  # interrupted, and then asked for with other parameters
        self.run.write_json(f"{where}/plan.json", content)
        self._run_phases(branch, request, plan)
        state, cost = self.federation.head(branch).state, self._branch_cost(branch)
        units = in_units(cost, entry["models"].get("oracle", {}).get("cost"), plan.fraction)
        self._save_adapter(f"{where}/adapters", state)
        trial = Trained(name=name, state=state, folder=f"{where}/adapters", cost=units, plan=plan)
        entry["models"][name] = self._measured(trial, request, entry)
        self.run.write_json(f"{where}/metrics.json", entry["models"][name])
        self.federation.replay.check(branch)
        self.register.move(request.id, "verified")
        self._enter(entry)  # last: from here on the trial is not run again

    def _run_phases(self, name: str, request: ForgetRequest, plan: RemovalPlan) -> None:
        head, replayed = self.federation.head(self.head).round, self._records_to_replay(plan.from_round)
        first = plan.phases[0] if plan.phases else None
        fork = first.first - 1 if isinstance(first, LearnPhase) and first.start == "restore" else head
        branch = Branch(
            name=name,
            seed=self.config.seed,
            rounds=plan.last_round(head),
            # Not always the head: a branch that has none of the rounds up to there need not be kept for them.
            parent=self.federation.replay.owner(self.head, fork).name if fork else None,
            fork=fork,
            absent=self._absent(request),
        )
        self.federation.begin(branch, None if fork else self.initial)
        for phase in plan.phases:
            if isinstance(phase, LearnPhase):
                self._rounds(name, phase.last, replayed if phase.replay else {})
            elif self.federation.head(name).round < phase.round:
                self.federation.unlearn(name, request, phase, self.data.public)

    def _cost(self, branch: str) -> Cost:
        return sum((record.cost for record in self.ledger.records(branch)), Cost())

    def _branch_cost(self, branch: str) -> Cost:
        """What a branch cost beyond what it shares with its parent."""
        own = (record.cost for record in self.ledger.records(branch) if record.branch == branch)
        return sum(own, Cost())

    def _measure(self, model: Trained, request: ForgetRequest, entry: dict[str, Any]) -> None:
        """Measure a model and write it into the request's entry in ``metrics.json``."""
        entry["models"][model.name] = self._measured(model, request, entry)
        self._enter(entry)

    def _measured(self, model: Trained, request: ForgetRequest, entry: dict[str, Any]) -> dict[str, Any]:
        branches = [name for name in (self.head, f"{request.id}/{model.name}") if self.federation.has(name)]
        records = [record for name in branches for record in self.ledger.records(name)]
        own = rounded_otherwise(self.resident.repeats_bits, records)
        rounding = own or entry["models"].get("oracle", {}).get("rounding")
        return {**self._entry_of(model, request), **({"rounding": rounding} if rounding else {})}

    def _entry_of(self, model: Trained, request: ForgetRequest | None) -> dict[str, Any]:
        exclusions = self.register.exclusions()
        return measure_model(model, request, self.run, self.data, self.resident, self.federation, exclusions)

    def metrics(self) -> dict[str, Any]:
        """What ``metrics.json`` says."""
        return read_metrics(self.run)

    def write_metrics(self, metrics: dict[str, Any]) -> None:
        """Write ``metrics.json``, with the rounds that were committed since."""
        write_metrics(self.run, metrics, self.config, self.ledger, self.head)

    def _enter(self, entry: dict[str, Any]) -> None:
        metrics = self.metrics()
        metrics["requests"] = [e for e in metrics["requests"] if e["id"] != entry["id"]] + [entry]
        self.write_metrics(metrics)
