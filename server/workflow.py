"""The workflow: learn, answer requests to forget with several removals, measure each, report.

Free of Flower: it runs the same on every engine.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

from oblivion.aggregation.gate import GateState
from oblivion.config import RunConfig
from oblivion.data.federation import resolve
from oblivion.data.groups import asked_rows, central_groups
from oblivion.ledger.memory import Ledger, MemoryLedger, RoundRecord, RoundState
from oblivion.metrics.evaluation import to_open_unlearning
from oblivion.models.loading import locate
from oblivion.models.resident import load_resident, read_adapter_folder
from oblivion.removal.plan import LearnPhase, RemovalPlan, Situation, UnlearnPhase, from_round
from oblivion.seeding import derive_seed
from oblivion.types import Adapter, Cost, ForgetRequest, GlobalState
from server.events import Observer
from server.measure import measure_centrally, measure_clients, summary
from server.planning import make_plan, make_situation, plan_values
from server.rounds import Absence, Federation, Hosts
from server.run_directory import RunDirectory, to_json

MAIN = "main"
ORIGINAL = "adapters/original"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trained:
    """A model to be measured.

    Attributes
    ----------
    name, folder : str
        Its key in ``metrics.json``, and where its adapter lies in the run directory.
    adapter : Adapter
        The model.
    cost : Cost
        What it took.
    fraction : float or None
        The same in units of retraining; None for the original.
    plan : RemovalPlan or None
        For a trial, what was carried out.
    """

    name: str
    adapter: Adapter
    folder: str
    cost: Cost
    fraction: float | None = None
    plan: RemovalPlan | None = None


class Workflow:
    """One run, from learning to the measured answer of a request.

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
    """

    def __init__(self, config: RunConfig, hosts: Hosts, run: RunDirectory, observer: Observer) -> None:
        self.config = config
        self.run = run
        self.observer = observer
        self.data = resolve(config)
        self.resident = load_resident(config.model, config.lora, config.train.max_length)
        self.initial = self.resident.initial_adapter(config.seed)
        self.ledger: Ledger = MemoryLedger()
        self.federation = Federation(config, hosts, self.ledger, self.initial, observer)
        self.federation.describe()

    def start_state(self, seed: int) -> RoundState:
        """The state before any training, for a root seed."""
        initial = self.initial if seed == self.config.seed else self.resident.initial_adapter(seed)
        state = GlobalState(adapter=initial)
        rule_state = self.federation.rule.init(state)
        return RoundState(round=0, state=state, rule_state=rule_state, gate_state=GateState())

    def learn(self) -> None:
        """Run every round of the federation, and keep the result."""
        self.ledger.branch(MAIN, self.start_state(self.config.seed))
        self._rounds(MAIN, Absence(), self.config.federation.rounds, self.config.seed)
        head = self.ledger.head(MAIN)
        self._save_adapter(ORIGINAL, head.state.adapter)
        self.run.save_head(head, self.ledger.records(MAIN))
        self._write_metrics(self._metrics())

    def restore(self) -> None:
        """Take up a finished run."""
        head, records = self.run.load_head()
        self.ledger.branch(MAIN, head, records)

    def _rounds(
        self, branch: str, absence: Absence, last: int, seed: int, replayed: Sequence[RoundRecord] = ()
    ) -> None:
        done = self.ledger.head(branch).round
        for number in range(done + 1, last + 1):
            record = replayed[number - 1] if replayed else None
            self.federation.run_round(branch, absence, last, seed, record)

    def _save_adapter(self, name: str, adapter: Adapter) -> None:
        folder = self.run.root / name
        shutil.rmtree(folder, ignore_errors=True)  # what an interrupted removal left; metrics.json knows nothing of it
        self.resident.save(adapter, folder, locate(self.config.model))

    def plan(self, request: ForgetRequest, method: str) -> RemovalPlan:
        """Plan a removal without running anything."""
        return make_plan(self.config, request, self._situation(request), method)

    def _situation(self, request: ForgetRequest) -> Situation:
        return make_situation(self.config, self.data, request, self.ledger.records(MAIN))

    def measure_learned(self) -> None:
        """Measure the learned model where nobody asks to be forgotten."""
        metrics = self._metrics()
        metrics["learned"] = self._entry_of(self._original(), None)
        self._write_metrics(metrics)

    def answer(self, request: ForgetRequest, methods: Sequence[str]) -> dict[str, str]:
        """Try removals on a request and measure each beside the original and the oracle.

        Returns
        -------
        dict
            Method to the name of its trial; a trial that exists already is not run again.
        """
        plans = {method: self.plan(request, method) for method in methods}
        entry = self._request_entry(request)
        names = {method: self._trial_name(entry, plan) for method, plan in plans.items()}
        self._measure_oracles(request, entry)
        if "original" not in entry["models"]:
            self._measure(self._original(), request, entry)
        for method, plan in plans.items():
            if names[method] not in entry["models"]:
                self._try(names[method], plan, request, entry)
        return names

    def _original(self) -> Trained:
        adapter = self.ledger.head(MAIN).state.adapter
        return Trained(name="original", adapter=adapter, folder=ORIGINAL, cost=self._cost(MAIN))

    def _request_entry(self, request: ForgetRequest) -> dict[str, Any]:
        for entry in self._metrics()["requests"]:
            if entry["id"] == request.id:
                return dict(entry)
        rows = asked_rows(self.data.clients[request.client_id], request)
        return {
            "id": request.id,
            "client": request.client_id,
            "samples": None if request.whole_client else len(rows),
            "sample_ids": request.sample_ids,
            "rows": len(rows),
            "t_u": from_round(request, self._situation(request)),
            "models": {},
        }

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

    def _measure_oracles(self, request: ForgetRequest, entry: dict[str, Any]) -> None:
        """Train the federation that never saw the data, once per seed; the first seed is the run's own."""
        for index in range(self.config.evaluate.oracle_seeds):
            name = "oracle" if index == 0 else f"oracle-{index + 1}"
            if name in entry["models"]:
                continue
            self.observer.event("phase", text=f"training the {name}: the federation without the data to forget")
            seed = self.config.seed if index == 0 else derive_seed(self.config.seed, "oracle", index)
            branch = f"{request.id}/{name}"
            self.ledger.branch(branch, self.start_state(seed))
            replayed = self.ledger.records(MAIN) if index == 0 else ()
            self._rounds(branch, Absence(request), self.config.federation.rounds, seed, replayed)
            adapter = self.ledger.head(branch).state.adapter
            oracle = Trained(
                name=name, adapter=adapter, folder=f"adapters/{name}-{request.id}", cost=self._cost(branch), fraction=1
            )
            self._save_adapter(oracle.folder, adapter)
            self._measure(oracle, request, entry)

    def _try(self, name: str, plan: RemovalPlan, request: ForgetRequest, entry: dict[str, Any]) -> None:
        """Carry a plan out on a branch of its own, and measure it."""
        self.observer.event("phase", text=f"removal {plan.label} (guarantee: {plan.guarantee})")
        oracle = entry["models"].get("oracle")
        if plan.method == "retrain" and oracle:  # the same computation: same seed, same absence, same rounds
            adapter, _, _ = read_adapter_folder(self.run.root / oracle["adapter"])
            cost = Cost(**{key: value for key, value in oracle["cost"].items() if key != "fraction"})
        else:
            branch = f"{request.id}/{name}"
            self._run_phases(branch, request, plan)
            adapter, cost = self.ledger.head(branch).state.adapter, self._cost(branch)
        fraction = cost.client_steps / oracle["cost"]["client_steps"] if oracle else plan.fraction
        where = f"forgets/{request.id}/{name}"
        self._save_adapter(f"{where}/adapters", adapter)
        self.run.write_json(f"{where}/plan.json", plan_values(plan))
        trial = Trained(name=name, adapter=adapter, folder=f"{where}/adapters", cost=cost, fraction=fraction, plan=plan)
        self._measure(trial, request, entry)
        self.run.write_json(f"{where}/metrics.json", entry["models"][name])

    def _run_phases(self, branch: str, request: ForgetRequest, plan: RemovalPlan) -> None:
        first = plan.phases[0]
        initial = isinstance(first, LearnPhase) and first.start == "initial"
        self.ledger.branch(branch, self.start_state(self.config.seed) if initial else self._head_without(request))
        for phase in plan.phases:
            if isinstance(phase, UnlearnPhase):
                self.federation.unlearn(branch, request, phase, self.data.public)
                continue
            if phase.reset_rule_state:
                self.ledger.reset_rule(branch, self.federation.rule.init(self.ledger.head(branch).state))
            replayed = self.ledger.records(MAIN) if phase.replay else ()
            self._rounds(branch, Absence(request), phase.last, self.config.seed, replayed)

    def _head_without(self, request: ForgetRequest) -> RoundState:
        head = self.ledger.head(MAIN)
        gate_state = head.gate_state.without(request.client_id) if request.whole_client else head.gate_state
        return dataclasses.replace(head, gate_state=gate_state)

    def _cost(self, branch: str) -> Cost:
        return sum((record.cost for record in self.ledger.records(branch)), Cost())

    def _measure(self, model: Trained, request: ForgetRequest, entry: dict[str, Any]) -> None:
        """Measure a model and write it into the request's entry in ``metrics.json``."""
        entry["models"][model.name] = self._entry_of(model, request)
        metrics = self._metrics()
        metrics["requests"] = [e for e in metrics["requests"] if e["id"] != entry["id"]] + [entry]
        self._write_metrics(metrics)

    def _entry_of(self, model: Trained, request: ForgetRequest | None) -> dict[str, Any]:
        """Measure a model centrally and on every client."""
        self.observer.event("phase", text=f"measuring {model.name}")
        where = f"evaluations/{request.id if request else 'learned'}"
        groups = central_groups(self.data, request, self.config.evaluate.limit)
        reference = self.run.read_json(f"{where}/oracle.json", None) if model.name != "oracle" else None
        evaluation = measure_centrally(model.adapter, self.resident, groups, self.config, reference)
        self.run.write_json(f"{where}/{model.name}.json", to_open_unlearning(evaluation, {"model": model.name}))
        if evaluation.skipped:
            text = f"{len(evaluation.skipped)} evaluation rows are longer than the context and are left out whole"
            self.observer.event("warning", text=text, samples=evaluation.skipped)
        central = summary(evaluation)
        if model.name == "oracle":
            central.pop("privleak", None)  # it compares with the oracle, and so says nothing of the oracle itself
        return {
            "label": model.plan.label if model.plan else model.name,
            "guarantee": model.plan.guarantee if model.plan else None,
            "adapter": model.folder,
            "central": central,
            "clients": measure_clients(model.adapter, self.federation, request),
            "cost": {**dataclasses.asdict(model.cost), "fraction": model.fraction},
            "touches": [dataclasses.asdict(touch) for touch in model.plan.touches] if model.plan else [],
        }

    def _metrics(self) -> dict[str, Any]:
        empty = {"format": 1, "scenario": self.run.root.name, "requests": [], "history": []}
        metrics: dict[str, Any] = self.run.read_json("metrics.json", empty)
        return metrics

    def _write_metrics(self, metrics: dict[str, Any]) -> None:
        """Write ``metrics.json``, with the rounds that were committed since."""
        known = {(e["branch"], e["round"]) for e in metrics["history"]}
        metrics["history"] += [e for e in self.observer.history if (e["branch"], e["round"]) not in known]
        self.run.write_json("metrics.json", metrics)
