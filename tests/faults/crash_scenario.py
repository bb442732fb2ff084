"""A small run as its user sees it, by commands. Training and evaluation are stand-ins, the rest is real."""

from __future__ import annotations

import hashlib
import json
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

import oblivion.federation.commits
import oblivion.federation.learning
import oblivion.federation.measure
import oblivion.federation.opened
import oblivion.federation.resolving
import oblivion.federation.results
import oblivion.registry
import oblivion.run.manifest
import server.main
import server.prepare
import simulations.engines.inline
from oblivion.config import RunConfig, config_from_mapping, load_config
from oblivion.data.federation import resolve
from oblivion.errors import PlanRefusedError
from oblivion.files import write_atomically
from oblivion.metrics.engine.one_pass import Evaluation
from oblivion.models.resident import ResidentModel, weight_bytes
from oblivion.provenance import code_fingerprint
from oblivion.run.directory import RunDirectory
from oblivion.seeding import torch_generator
from oblivion.types import (
    Adapter,
    ClientTask,
    ClientUpdate,
    EvaluateRequest,
    GlobalState,
    HostReply,
    HostRequest,
    MetricResult,
    TrainRequest,
    VisitRequest,
)
from oblivion.visit_steps import steps_per_visit
from simulations.simulate import commit_in_run, forget_in_run, resume, simulate

SETTINGS = {
    "engine": "inline",
    "simulation.hosts": 2,
    "federation.clients": 3,
    "federation.rounds": 3,
    "federation.clients-per-round": 3,
    "federation.joins.client-2": 3,
    "federation.aggregator": "fedadam",
    "train.cohort": 2,
    "train.learning-rate": 0.1,
    "data.parameters.rows_per_client": 8,
    "data.parameters.holdout_authors": 1,
    "ledger.checkpoint-every": 2,
    "ledger.retention": 2,
    "forget.client": "client-2",
    "forget.methods": ["rollback"],
}
QUICK = {"exclude": {"recovery-rounds": 1}, "local": {"recovery-rounds": 1}}
ROWS: dict[str, tuple[str, ...]] = {}
"""Client to the ids of its rows."""
LOSSES: dict[str, float] = {}
TOKENS: dict[str, float] = {}
"""What a client says of its visits, where that is not as usual: it changes no update."""
trained: list[tuple[str, int, str]] = []
"""(branch, round, client) of every visit in this process."""


class FakeHost:
    """Answers like a host, with updates that are a pure function of what training may depend on."""

    def answer(self, request: HostRequest) -> HostReply:
        tasks = [task for cohort in request.cohorts for task in cohort]
        if request.kind == "query.describe":
            return HostReply(host=request.host, clients={c: {"samples": len(rows)} for c, rows in ROWS.items()})
        if isinstance(request, EvaluateRequest):
            said = {task.client_id: {"probability": (summary(request.state.adapter), 1.0)} for task in tasks}
            return HostReply(host=request.host, metrics=said)
        assert isinstance(request, TrainRequest)
        return HostReply(host=request.host, updates=tuple(self._visit(request, task) for task in tasks))

    def _visit(self, request: TrainRequest, task: ClientTask) -> ClientUpdate:
        if request.kind == "train":
            trained.append((request.info.branch, request.info.round, task.client_id))
        left = [row for row in ROWS[task.client_id] if row not in task.excluded]
        train, purpose = request.config["train"], json.dumps([request.kind, left, task.forget])
        epochs = request.local_epochs if isinstance(request, VisitRequest) else train["local-epochs"]
        generator = torch_generator(request.info.seed, purpose, request.info.round, task.client_id)
        return ClientUpdate(
            client_id=task.client_id,
            round=request.info.round,
            delta={
                name: 0.1 * torch.randn(tensor.shape, generator=generator) - 0.2 * tensor
                for name, tensor in request.state.adapter.items()
            },
            num_examples=len(left),
            steps=steps_per_visit(len(left), train["batch-size"], epochs),
            metrics={
                "loss": LOSSES.get(task.client_id, 1.0) / request.info.round,
                "tokens": TOKENS.get(task.client_id, 10.0),
            },
            fingerprint=code_fingerprint(),
        )


def summary(adapter: Adapter) -> float:
    """A number that two different adapters do not share."""
    return int.from_bytes(hashlib.sha256(weight_bytes(adapter)).digest()[:4], "big") / 2**32


def measure(state: GlobalState, *_: Any) -> Evaluation:
    """A stand-in for evaluation."""
    return Evaluation(results={"model_utility": MetricResult(value=summary(state.adapter), n=4, interval=(0.0, 1.0))})


def report(_: Any, path: Path) -> Path:
    """A stand-in for the report."""
    write_atomically(path, b"a report")
    return path


def adapters_alone() -> ResidentModel:
    """A resident model without a base model, whose adapters are made and saved as those of any other."""
    resident: ResidentModel = object.__new__(ResidentModel)
    shapes = {"A": (2, 4), "B": (4, 2)}
    resident.parameters = {
        f"base_model.model.layers.{layer}.q_proj.lora_{part}.weight": torch.nn.Parameter(torch.zeros(shape))
        for layer in (0, 1)
        for part, shape in shapes.items()
    }
    said = {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}
    settings = types.SimpleNamespace(to_dict=lambda: said, lora_dropout=0.0)
    resident.model = types.SimpleNamespace(peft_config={"default": settings}, named_modules=lambda: [])
    resident.base = types.SimpleNamespace(tokenizer=None, max_length=64)
    resident.task = types.SimpleNamespace(check=lambda: None, kinds=lambda _: ("logits",))
    resident.left_out = ()
    return resident


def configure(work: Path) -> RunConfig:
    """The scenario; what is slow, or has no part in what is written, is replaced."""
    torch.set_num_threads(1)
    resident = adapters_alone()
    for module in (server.prepare, oblivion.federation.opened):
        module.learner_of = lambda _: resident
    models = types.SimpleNamespace(
        locate=lambda _: "a model", digest=lambda _: "a digest", resolve_dtype=lambda _: "float32"
    )
    resolving = oblivion.federation.resolving
    for module in (server.prepare, resolving, oblivion.federation.results, oblivion.run.manifest):
        module.models_of = lambda _: models
    for module in (server.prepare, oblivion.federation.learning):
        module.fusible = lambda _: None
    for module in (server.main, oblivion.federation.commits):
        module.write_report = report
    oblivion.federation.commits.build_report = lambda _: ""
    server.prepare.check_disk = server.prepare.check_fits = lambda *_: None
    server.prepare.unfit_rows = lambda *_: {}
    oblivion.federation.learning.beforehand = lambda *_: []
    simulations.engines.inline.Host = FakeHost
    oblivion.federation.measure.measure_centrally = measure
    oblivion.run.manifest._commit = lambda: "a commit"
    oblivion.registry.entry_points = lambda group: ()
    config = load_config(None, SETTINGS)
    ROWS.update({client: tuple(row.id for row in rows) for client, rows in resolve(config).clients.items()})
    (work / "samples.txt").write_text("\n".join(ROWS["client-0"][:2]))
    return config


def run(config: RunConfig, root: Path, work: Path) -> None:
    """``oblivion run --out ROOT``, or with ``--resume`` where it is there."""
    resume(root) if root.exists() else simulate(config, root)


def forget(
    client: str, methods: Sequence[str], samples: str = "", oracles: int = 0
) -> Callable[[RunConfig, Path, Path], None]:
    """``oblivion forget ROOT --client CLIENT --method ...``."""

    def command(config: RunConfig, root: Path, work: Path) -> None:
        directory, stored = RunDirectory.open(root)
        tree = stored.to_json()
        tree["forget"].update(
            client=client,
            samples=samples and str(work / samples),
            methods={name: QUICK.get(name, {}) for name in methods},
        )
        tree["evaluate"]["oracle-seeds"] = oracles
        forget_in_run(directory, config_from_mapping(tree))

    return command


def commit(client: str, method: str) -> Callable[[RunConfig, Path, Path], None]:
    """``oblivion commit ROOT REQUEST/METHOD``; again, it may say that this is done already."""

    def command(config: RunConfig, root: Path, work: Path) -> None:
        directory, stored = RunDirectory.open(root)
        entries = directory.read_json("metrics.json", {})["requests"]
        request = next((entry["id"] for entry in entries if entry["client"] == client), None)
        try:
            commit_in_run(directory, stored, f"{request}/{method}", accept_no_guarantee=True)
        except PlanRefusedError as error:
            if "is committed already" not in str(error):
                raise

    return command


COMMANDS: dict[str, Callable[[RunConfig, Path, Path], None]] = {
    "run": run,
    "forget": forget("client-2", ["exclude", "local", "puf"], oracles=1),
    "commit": commit("client-2", "rollback"),
    "forget-samples": forget("client-0", ["rollback"], "samples.txt"),
    "commit-samples": commit("client-0", "rollback"),
    "forget-last": forget("client-1", ["exclude"]),
    "commit-last": commit("client-1", "exclude"),
    "resume": run,
}
