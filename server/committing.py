"""Committing a trial: verify it, make it the head of the run, erase, and write the evidence.

The ledger's transaction decides. Whatever comes after it (files, evidence) is done when the run is opened next, if
a crash came in between.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any

from oblivion.aggregation.products import as_adapter
from oblivion.errors import ConfigError, IntegrityError, PlanRefusedError, nearest
from oblivion.files import erase, write_atomically
from oblivion.ledger.book import Record
from oblivion.ledger.erasure import commit_removal, void_requests
from oblivion.ledger.evidence import LIMITS, predicate, seal, statement
from oblivion.ledger.merkle import inclusion_proof, leaf_hash
from oblivion.ledger.register import Asked
from oblivion.models.adapter_folder import CONFIG, WEIGHTS
from oblivion.models.resident import weight_bytes
from oblivion.report import write_report
from server.manifest import describe_clients
from server.workflow import Workflow

PUBLIC_KEY = "public-key.pem"
_CODE = ("versions", "commit", "code_fingerprint", "packages", "packages_added")
_ENVIRONMENT = (*_CODE, "model", "model_digest", "seed", "engine", "machine")
"""What of the manifest goes into evidence: nothing of who else takes part, or of their data."""


_COST = ("client_steps", "fraction", "token_fraction")


def commit_trial(workflow: Workflow, trial: str) -> dict[str, int]:
    """Make a trial the head of the run.

    Parameters
    ----------
    workflow : Workflow
        Open on the run.
    trial : str
        ``"<request>/<name>"``.

    Returns
    -------
    dict
        How many records of the ledger were erased, by kind.

    Raises
    ------
    ConfigError
        If there is no such request or trial; what was tried before another removal was committed is gone.
    PlanRefusedError
        If the request was answered already.
    IntegrityError
        If the trial is not what its stored contributions make.
    """
    request_id, _, name = trial.partition("/")
    asked = workflow.register.asked(request_id)
    if not asked.open:
        raise PlanRefusedError(f"{request_id} is {asked.state} already{f': {asked.ground}' if asked.ground else ''}")
    folder = workflow.run.root / "forgets" / trial
    entries = {entry["id"]: entry for entry in workflow.metrics()["requests"]}
    models: dict[str, Any] = entries[request_id]["models"] if request_id in entries else {}
    if not name or name not in models or not workflow.federation.has(trial):
        known = [key for key in models if workflow.federation.has(f"{request_id}/{key}")]
        raise ConfigError(f"{request_id} has no trial '{name}' at the present head; {nearest(name, known)}")
    plan = workflow.run.read_json(f"forgets/{trial}/plan.json", {})
    replayed = workflow.federation.replay.check(trial)
    after = workflow.federation.head(trial).state
    if hashlib.sha256(weight_bytes(as_adapter(after))).hexdigest() != _digest(folder / "adapters" / WEIGHTS):
        raise IntegrityError(f"{folder}/adapters is not what the ledger says; was it changed? Try the removal again")
    facts = {
        "trial": name,
        "whole_client": asked.request.whole_client,
        "guarantee": plan["guarantee"],
        "from_round": plan["from_round"],
        "before": _digests(workflow.run.root / workflow.head_folder),
        "after": _digests(folder / "adapters"),
        "replayed": replayed,
        "files": {kind: len(paths) for kind, paths in _invalid_files(workflow, asked, trial).items()},
        "key_id": _key_id(workflow, asked),
    }
    workflow.observer.event("phase", text=f"committing {trial}: erasing what holds the forgotten data")
    erased = commit_removal(workflow.ledger, workflow.register, asked, trial, facts)
    finish_commits(workflow)
    return erased


def finish_commits(workflow: Workflow) -> str:
    """Erase the files of the last committed removal, write report and evidence, where that is not done yet.

    Returns
    -------
    str
        The trial whose commit was finished; empty where nothing was left to do.
    """
    removals = workflow.register.removals()
    if not removals:
        return ""
    trial = str(removals[-1].content["branch"])
    path = workflow.run.root / "forgets" / trial / "evidence.json"
    if path.is_file():
        return ""
    _erase_files(workflow, removals[-1])
    write_report([workflow.run.root], workflow.run.root / "report.html")  # first: evidence says that all is done
    workflow.run.write_json(f"forgets/{trial}/evidence.json", _evidence(workflow, removals[-1]))
    workflow.reload()
    return trial


def _closed(workflow: Workflow, asked: Asked) -> set[str]:
    """The requests that are answered when `asked` is; what a client that leaves altogether still asked goes with it."""
    others = [other for other in workflow.register.all_asked() if other.request.id != asked.request.id]
    void = void_requests(asked, others)
    committed = {str(removal.content["request"]) for removal in workflow.register.removals()}
    refused = {other.request.id for other in others if not other.open and other not in void}
    return {asked.request.id} | committed | refused


def _invalid_files(workflow: Workflow, asked: Asked, trial: str) -> dict[str, list[Path]]:
    """Every adapter that had the data; per-row results, and what other requests tried on the old head."""
    root, closed = workflow.run.root, _closed(workflow, asked)
    oracle, mine = f"oracle.*-{asked.request.id}", root / "forgets" / trial / "adapters"
    adapters = [path for path in sorted(root.glob("adapters/*")) if not re.fullmatch(oracle, path.name)]
    adapters += [path for path in sorted(root.glob("forgets/*/*/adapters")) if path != mine]
    stale = [folder for folder in sorted(root.glob("forgets/*")) if folder.name not in closed]
    return {"adapters": adapters, "files": [*stale, *sorted(root.glob("evaluations/*"))]}


def _erase_files(workflow: Workflow, removal: Record) -> None:
    root, request, trial = workflow.run.root, removal.content["request"], removal.content["branch"]
    asked = workflow.register.asked(request)
    for path in chain(*_invalid_files(workflow, asked, trial).values()):
        erase(path)
    closed = _closed(workflow, asked)
    metrics = workflow.metrics()
    metrics["requests"] = [entry for entry in metrics["requests"] if entry["id"] in closed]
    metrics["head"] = f"forgets/{trial}/adapters"
    for entry in metrics["requests"]:
        if entry["id"] == request:
            entry["committed"] = removal.content["trial"]
            entry["committed_at"] = removal.content["committed_at"]
        if entry["client"] == asked.request.client_id and asked.request.whole_client:
            entry["sample_ids"] = None  # of an earlier request for some of its samples
        for model in entry["models"].values():
            if model["adapter"] and not (root / model["adapter"]).is_dir():
                model["adapter"] = None
    workflow.write_metrics(metrics)
    left = workflow.present_data()
    workflow.run.write_json("manifest.json", {**workflow.run.read_json("manifest.json", {}), **describe_clients(left)})


def _evidence(workflow: Workflow, removal: Record) -> dict[str, Any]:
    said = removal.content
    asked, trial = workflow.register.asked(said["request"]), said["branch"]
    plan = workflow.run.read_json(f"forgets/{trial}/plan.json", {})
    (entry,) = [e for e in workflow.metrics()["requests"] if e["id"] == said["request"]]
    signing = workflow.ledger.keys.signing()
    write_atomically(workflow.run.root / PUBLIC_KEY, _pem(signing.public_key()))
    models = {name: entry["models"][name] for name in entry["models"] if name in ("original", said["trial"])}
    models |= {name: model for name, model in entry["models"].items() if name.startswith("oracle")}
    request, manifest = asked.request, workflow.run.read_json("manifest.json", {})
    content = predicate(
        request={
            "id": request.id,
            "client": request.client_id,
            "scope": "client" if request.whole_client else "samples",
            "samples": entry["rows"],
            **({"shared": entry["shared"]} if "shared" in entry else {}),
            "issued_at": request.issued_at,
            "received_at": asked.received_at,
            "due_at": asked.due_at,
            "committed_at": said["committed_at"],
            "key_id": said["key_id"],
        },
        plan={
            "method": plan["method"],
            "label": plan["label"],
            "guarantee": plan["guarantee"],
            "from_round": plan["from_round"],
            "restored_round": _restored(plan),
            "phases": plan["phases"],
            "checklist": plan["touches"],
            "cost": {key: entry["models"][said["trial"]]["cost"].get(key) for key in _COST},
            "rounds_checked_by_replay": said["replayed"],
        },
        measured={"original": {}, "oracle": {}}
        | {"committed" if n == said["trial"] else n: _numbers(model["central"]) for n, model in models.items()},
        erased={
            **{f"{kind}s": said["erased"].get(kind, 0) for kind in ("contribution", "state", "key")},
            **said["files"],
            "invalidated": plan["invalidates"],
        },
        log=_log_proof(workflow, removal),
        environment={name: manifest[name] for name in _ENVIRONMENT if name in manifest},
        limits=LIMITS,
    )
    return seal(statement(said["before"], said["after"], content), signing)


def _numbers(central: Mapping[str, Any]) -> dict[str, Any]:
    return {name: {key: measure[key] for key in ("value", "interval", "n")} for name, measure in central.items()}


def _restored(plan: Mapping[str, Any]) -> int | None:
    first = plan["phases"][0] if plan["phases"] else {}
    return first["first"] - 1 if first.get("start") == "restore" else None


def _log_proof(workflow: Workflow, removal: Record) -> dict[str, Any]:
    entries = workflow.ledger.book.entries()
    checkpoint = workflow.ledger.book.checkpoint()
    leaves = [leaf_hash(entry.encode()) for entry in entries]
    proof = inclusion_proof(leaves, removal.seq - 1, checkpoint.size)
    return {
        "entry": entries[removal.seq - 1],
        "index": removal.seq - 1,
        "proof": [node.hex() for node in proof],
        **checkpoint.to_json(),
    }


def _key_id(workflow: Workflow, asked: Asked) -> str:
    key = workflow.register.public_key(asked.request.client_id)
    return hashlib.sha256(key.public_bytes_raw()).hexdigest() if key else ""


def _pem(key: Any) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    pem: bytes = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return pem


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


def _digests(folder: Path) -> dict[str, str]:
    return {name: _digest(folder / name) for name in (CONFIG, WEIGHTS)}
