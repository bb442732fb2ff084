"""The workflow: learn, answer requests to forget with several removals, measure each, report.

Free of Flower: it runs the same on every engine.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

from oblivion.aggregation.gate import GateState
from oblivion.config import RunConfig
from oblivion.data.corpus import FederatedData
from oblivion.data.federation import resolve
from oblivion.data.groups import asked_rows, central_groups
from oblivion.data.requests import select_samples
from oblivion.errors import PlanRefusedError
from oblivion.ledger.memory import MemoryLedger, RoundRecord, RoundState
from oblivion.metrics.evaluation import to_open_unlearning
from oblivion.models.loading import locate
from oblivion.models.resident import load_resident, read_adapter_folder
from oblivion.removal import removal_from
from oblivion.removal.plan import LearnPhase, RemovalPlan, Situation, UnlearnPhase, from_round
from oblivion.seeding import derive_seed
from oblivion.training.batches import steps_per_visit
from oblivion.types import Adapter, Cost, ForgetRequest, GlobalState
from server.events import Observer
from server.measure import measure_centrally, measure_clients, summary
from server.rounds import Absence, Federation, Hosts
from server.run_directory import RunDirectory

MAIN = "main"


def make_request(data: FederatedData, client: str, samples: str) -> ForgetRequest:
    """Make a request; its id is a digest of what it asks for, so the same request has the same id."""
    asked = select_samples(data, client, samples)
    content = json.dumps([client, None if asked is None else sorted(asked)]).encode()
    return ForgetRequest(id=f"req-{hashlib.sha256(content).hexdigest()[:12]}", client_id=client, sample_ids=asked)


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
        self.ledger = MemoryLedger()
        self.federation = Federation(config, hosts, self.ledger, self.initial, observer)
        self.federation.describe()

    def start_state(self, seed: int) -> RoundState:
        """The state before any training, for a root seed."""
        initial = self.initial if seed == self.config.seed else self.resident.initial_adapter(seed)
        state = GlobalState(adapter=initial)
        rule_state = self.federation.rule.init(state)
        return RoundState(round=0, state=state, rule_state=rule_state, gate_state=GateState())

    def learn(self) -> Adapter:
        """Run every round of the federation, and keep the result."""
        self.ledger.branch(MAIN, self.start_state(self.config.seed))
        self._rounds(MAIN, Absence(), self.config.federation.rounds, self.config.seed)
        head = self.ledger.head(MAIN)
        self._save_adapter("adapters/original", head.state.adapter)
        self.run.save_head(head, self.ledger.records(MAIN))
        self._write_history()
        return head.state.adapter

    def restore(self) -> Adapter:
        """Take up a finished run."""
        head, records = self.run.load_head()
        self.ledger.branch(MAIN, head, records)
        return head.state.adapter

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

    def situation(self, request: ForgetRequest) -> Situation:
        """What a removal may know when it plans."""
        train, forget = self.config.train, self.config.forget
        steps = {}
        target = len(asked_rows(self.data.clients[request.client_id], request))
        for client, size in self.federation.sizes.items():
            rows = size - (target if client == request.client_id else 0)
            if rows:
                steps[client] = steps_per_visit(rows, train.batch_size, train.local_epochs)
        if not steps:
            raise PlanRefusedError(f"{request.client_id} is the only client; without it there is nothing to learn from")
        return Situation(
            records=self.ledger.records(MAIN),
            aggregator=self.federation.rule,
            scheme=self.config.lora.scheme,
            seed=self.config.seed,
            clients_per_round=self.config.federation.clients_per_round,
            joins=self.config.federation.joins,
            steps=steps,
            unlearn_steps=steps_per_visit(target, train.batch_size, forget.local_epochs),
            public=bool(self.data.public),
        )

    def plan(self, request: ForgetRequest, method: str) -> RemovalPlan:
        """Plan a removal without running anything."""
        return removal_from(method, self.config.forget).plan(request, self.situation(request))

    def answer(self, request: ForgetRequest, methods: Sequence[str]) -> dict[str, str]:
        """Try removals on a request and measure each beside the original and the oracle.

        Returns
        -------
        dict
            Method to the name of its trial; a trial that exists already is not run again.
        """
        plans = {method: self.plan(request, method) for method in methods}
        entry = self._entry(request)
        names = {method: self._trial_name(entry, request, plan) for method, plan in plans.items()}
        original = self.ledger.head(MAIN).state.adapter
        self._measure_oracles(request, entry)
        if "original" not in entry["models"]:
            self._measure(request, entry, "original", "original", original, "adapters/original", self._cost(MAIN))
        for method, plan in plans.items():
            if names[method] not in entry["models"]:
                self._try(request, entry, names[method], plan)
        return names

    def measure_learned(self) -> None:
        """Measure the learned model where nobody asks to be forgotten."""
        metrics = self._metrics()
        adapter = self.ledger.head(MAIN).state.adapter
        metrics["learned"] = self._model_entry(None, "original", adapter, "adapters/original", self._cost(MAIN))
        self._write_history(metrics)

    def _entry(self, request: ForgetRequest) -> dict[str, Any]:
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
            "t_u": from_round(request, self.situation(request)),
            "models": {},
        }

    def _trial_name(self, entry: Mapping[str, Any], request: ForgetRequest, plan: RemovalPlan) -> str:
        """The trial of this very plan if there is one, else a new name."""
        content = plan_values(plan)
        number = 1
        while True:
            name = plan.method if number == 1 else f"{plan.method}-{number}"
            if name not in entry["models"]:
                return name
            if self.run.read_json(f"forgets/{request.id}/{name}/plan.json", None) == json.loads(json.dumps(content)):
                return name
            number += 1

    def _measure_oracles(self, request: ForgetRequest, entry: dict[str, Any]) -> None:
        """Train the federation that never saw the data, once per seed; the first seed is the run's own."""
        for index in range(self.config.evaluate.oracle_seeds):
            name = "oracle" if index == 0 else f"oracle-{index + 1}"
            seed = self.config.seed if index == 0 else derive_seed(self.config.seed, "oracle", index)
            if name in entry["models"]:
                continue
            branch = f"{request.id}/{name}"
            self.observer.event("phase", text=f"training the {name}: the federation without the data to forget")
            self.ledger.branch(branch, self.start_state(seed))
            replayed = self.ledger.records(MAIN) if index == 0 else ()
            self._rounds(branch, Absence(request), self.config.federation.rounds, seed, replayed)
            adapter = self.ledger.head(branch).state.adapter
            folder = f"adapters/{name}-{request.id}"
            self._save_adapter(folder, adapter)
            self._measure(request, entry, name, name, adapter, folder, self._cost(branch))

    def _try(self, request: ForgetRequest, entry: dict[str, Any], name: str, plan: RemovalPlan) -> None:
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
        folder = f"forgets/{request.id}/{name}"
        self._save_adapter(f"{folder}/adapters", adapter)
        self.run.write_json(f"{folder}/plan.json", plan_values(plan))
        self._measure(request, entry, name, plan.label, adapter, f"{folder}/adapters", cost, plan)
        self.run.write_json(f"{folder}/metrics.json", entry["models"][name])

    def _run_phases(self, branch: str, request: ForgetRequest, plan: RemovalPlan) -> None:
        absence = Absence(request)
        for index, phase in enumerate(plan.phases):
            if index == 0:
                initial = isinstance(phase, LearnPhase) and phase.start == "initial"
                self.ledger.branch(
                    branch, self.start_state(self.config.seed) if initial else self._head_without(request)
                )
            if isinstance(phase, UnlearnPhase):
                self.federation.unlearn(branch, request, phase, self.data.public)
                continue
            if phase.reset_rule_state:
                self.ledger.reset_rule(branch, self.federation.rule.init(self.ledger.head(branch).state))
            replayed = self.ledger.records(MAIN) if phase.replay else ()
            self._rounds(branch, absence, phase.last, self.config.seed, replayed)

    def _head_without(self, request: ForgetRequest) -> RoundState:
        head = self.ledger.head(MAIN)
        gate_state = head.gate_state.without(request.client_id) if request.whole_client else head.gate_state
        return dataclasses.replace(head, gate_state=gate_state)

    def _cost(self, branch: str) -> Cost:
        return sum((record.cost for record in self.ledger.records(branch)), Cost())

    def _measure(
        self,
        request: ForgetRequest,
        entry: dict[str, Any],
        name: str,
        label: str,
        adapter: Adapter,
        folder: str,
        cost: Cost,
        plan: RemovalPlan | None = None,
    ) -> None:
        """Measure a model and write it into the request's entry in ``metrics.json``."""
        model = self._model_entry(request, name, adapter, folder, cost)
        oracle = entry["models"].get("oracle")
        if plan is not None:
            steps = oracle["cost"]["client_steps"] if oracle else 0
            model["cost"]["fraction"] = cost.client_steps / steps if steps else plan.fraction
            model["guarantee"] = plan.guarantee
            model["touches"] = [dataclasses.asdict(touch) for touch in plan.touches]
        elif name != "original":
            model["cost"]["fraction"] = 1.0
        model["label"] = label
        entry["models"][name] = model
        metrics = self._metrics()
        metrics["requests"] = [e for e in metrics["requests"] if e["id"] != entry["id"]] + [entry]
        self._write_history(metrics)

    def _model_entry(
        self, request: ForgetRequest | None, name: str, adapter: Adapter, folder: str, cost: Cost
    ) -> dict[str, Any]:
        """Measure a model centrally and on every client."""
        self.observer.event("phase", text=f"measuring {name}")
        where = f"evaluations/{request.id if request else 'learned'}"
        groups = central_groups(self.data, request, self.config.evaluate.limit)
        reference = self.run.read_json(f"{where}/oracle.json", None) if name != "oracle" else None
        evaluation = measure_centrally(adapter, self.resident, groups, self.config, reference)
        self.run.write_json(f"{where}/{name}.json", to_open_unlearning(evaluation, {"model": name}))
        central = summary(evaluation)
        if name == "oracle":
            central.pop("privleak", None)  # it compares with the oracle, and so says nothing of the oracle itself
        return {
            "label": name,
            "guarantee": None,
            "adapter": folder,
            "central": central,
            "clients": measure_clients(adapter, self.federation, request),
            "cost": {**dataclasses.asdict(cost), "fraction": None},
            "touches": [],
        }

    def _metrics(self) -> dict[str, Any]:
        empty = {"format": 1, "scenario": self.run.root.name, "requests": [], "history": []}
        metrics: dict[str, Any] = self.run.read_json("metrics.json", empty)
        return metrics

    def _write_history(self, metrics: dict[str, Any] | None = None) -> None:
        metrics = metrics or self._metrics()
        known = {(e["branch"], e["round"]) for e in metrics["history"]}
        metrics["history"] += [e for e in self.observer.history if (e["branch"], e["round"]) not in known]
        self.run.write_json("metrics.json", metrics)


def plan_values(plan: RemovalPlan) -> dict[str, Any]:
    """A plan as plain JSON values; every phase says its kind."""
    content = dataclasses.asdict(plan)
    for phase, values in zip(plan.phases, content["phases"], strict=True):
        values["kind"] = "learn" if isinstance(phase, LearnPhase) else "unlearn"
    return content
