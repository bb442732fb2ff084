"""Committing a trial: verify it, make it the head of the run, erase, and write the evidence.

The ledger's transaction decides. Whatever comes after it (files, evidence) is done when the run is opened next, if
a crash came in between.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from oblivion.aggregation.products import as_adapter
from oblivion.errors import ConfigError, InputError, IntegrityError, OblivionError, PlanRefusedError, nearest
from oblivion.files import write_atomically
from oblivion.ledger.book import Record, stamp
from oblivion.ledger.checkpoint import sign_checkpoint
from oblivion.ledger.erasure import commit_removal
from oblivion.ledger.evidence import LIMITS, predicate, seal, statement
from oblivion.ledger.merkle import inclusion_proof, leaf_hash
from oblivion.ledger.opening import DATABASE
from oblivion.ledger.reading import canonical
from oblivion.ledger.register import Asked
from oblivion.models.adapter_folder import CONFIG, WEIGHTS
from oblivion.models.resident import weight_bytes
from oblivion.outside import shown
from oblivion.report import write_report
from oblivion.report.page import build_report
from server.erasing import check_removable, erase_files, erase_numbers, files_to_erase, outside, stuck
from server.workflow import Workflow

PUBLIC_KEY = "public-key.pem"
_CODE = ("versions", "commit", "code_fingerprint", "packages", "packages_added")
_ENVIRONMENT = (*_CODE, "model", "model_digest", "seed", "engine", "machine")
"""What of the manifest goes into evidence: nothing of who else takes part, or of their data."""


_COST = ("client_steps", "fraction")
_REWRITTEN = ("metrics.json", "manifest.json", "config.toml", "events.jsonl", "report.html", PUBLIC_KEY)
_SPARE_BYTES = 2**20


def commit_trial(workflow: Workflow, trial: str, accept_no_guarantee: bool = False) -> str:
    """Make a trial the head of the run.

    All that is needed afterwards is checked before the ledger's transaction, and what evidence will say is in it.

    Parameters
    ----------
    workflow : Workflow
        Open on the run.
    trial : str
        ``"<request>/<name>"``.
    accept_no_guarantee : bool, default False
        Whether its guarantee may be none.

    Returns
    -------
    str
        Why the files could not all be erased yet; empty where all is done.

    Raises
    ------
    ConfigError
        If there is no such request or trial; what was tried before another removal was committed is gone.
    PlanRefusedError
        If the request was answered already, or the trial does not remove the data.
    IntegrityError
        If the trial is not what its stored contributions make, or evidence of it would not hold.
    OblivionError
        If something that must be removed or written afterwards cannot be.
    """
    asked, entry = _find(workflow, trial)
    name, folder = trial.partition("/")[2], workflow.run.root / "forgets" / trial
    plan = workflow.run.read_json(f"forgets/{trial}/plan.json", {})
    _check_guarantee(str(plan.get("guarantee")), accept_no_guarantee)
    replayed = workflow.federation.replay.check(trial)
    after = workflow.federation.head(trial).state
    if hashlib.sha256(weight_bytes(as_adapter(after))).hexdigest() != _digest(folder / "adapters" / WEIGHTS):
        raise IntegrityError(f"{folder}/adapters is not what the ledger says; was it changed? Try the removal again")
    made = workflow.head_files()  # what was learned is known, also where somebody removed its folder
    before = {CONFIG: _digest(workflow.run.root / workflow.head_folder / CONFIG) or _sha256(made[CONFIG])}
    erases = _not_pending(workflow, files_to_erase(workflow, asked, trial))
    facts = {
        "trial": name,
        "whole_client": asked.request.whole_client,
        "guarantee": plan["guarantee"],
        "accepted_no_guarantee": plan["guarantee"] == "none",
        "from_round": plan.get("from_round"),
        "before": before | {WEIGHTS: _sha256(made[WEIGHTS])},
        "after": _digests(folder / "adapters"),
        "erases": erases,
        "evidence": _evidence_beforehand(workflow, asked, entry, plan, name, replayed),
    }
    _rehearse(workflow, asked, facts)
    check_removable(workflow.run.root, [*erases["adapters"], *erases["files"], f"forgets/{trial}/evidence.json"])
    _check_writable(workflow, folder)
    build_report([workflow.run.root])  # it must be possible afterwards
    workflow.observer.event("phase", text=f"committing {trial}: erasing what holds the forgotten data")
    commit_removal(workflow.ledger, workflow.register, asked, trial, facts)
    return finish_commits(workflow)[trial]


def _find(workflow: Workflow, trial: str) -> tuple[Asked, dict[str, Any]]:
    """The open request of a trial, and its entry in ``metrics.json``."""
    request_id, _, name = trial.partition("/")
    asked = workflow.register.asked(request_id)
    if not asked.open:
        raise PlanRefusedError(f"{request_id} is {asked.state} already{f': {asked.ground}' if asked.ground else ''}")
    entries = {entry["id"]: entry for entry in workflow.metrics()["requests"]}
    models: dict[str, Any] = entries[request_id]["models"] if request_id in entries else {}
    if not name or name not in models or not workflow.federation.has(trial):
        known = [key for key in models if workflow.federation.has(f"{request_id}/{key}")]
        what = f"{request_id} has no trial '{name}' at the present head; {nearest(name, known)}"
        raise ConfigError(what if name else f"{what}; give --commit {request_id}/TRIAL")
    return asked, entries[request_id]


def _check_guarantee(guarantee: str, accepted: bool) -> None:
    if guarantee in ("exact", "certified", "approximate") or (guarantee == "none" and accepted):
        return
    if guarantee == "none":
        raise PlanRefusedError(
            "the guarantee of this trial is none: what the model learned of the data stays in it. Commit another "
            "trial, or this one with --accept-no-guarantee"
        )
    raise PlanRefusedError(
        f"a trial whose guarantee is {shown(guarantee)} is never committed: the model still holds the data. Commit "
        "one that is exact, certified or approximate"
    )


def _not_pending(workflow: Workflow, erases: dict[str, list[str]]) -> dict[str, list[str]]:
    """Without what an earlier commit has still to erase: that one is stuck, not this."""
    pending = {
        name
        for removal in _unfinished(workflow)
        for names in removal.content["erases"].values()
        for name in names
        if not workflow.federation.has("/".join(name.split("/")[1:3]))
    }
    return {kind: [name for name in names if name not in pending] for kind, names in erases.items()}


def _check_writable(workflow: Workflow, folder: Path) -> None:
    """Refuse where what a commit writes afterwards could not be written."""
    root = workflow.run.root
    paths = [*(root / name for name in _REWRITTEN), folder / "evidence.json", *sorted(root.glob("ledger/*"))]
    for path in [*paths, *sorted(root.glob("keys/*")), *sorted(root.glob("forgets/*/*/metrics.json"))]:
        reason = "it is a folder" if path.is_dir() and path.name in _REWRITTEN else stuck(path)
        if reason:
            raise OblivionError(f"{path} could not be written: {reason}; make it writable. Nothing was changed")
    needed = sum((root / name).stat().st_size for name in (*_REWRITTEN, DATABASE) if (root / name).is_file())
    free = shutil.disk_usage(root).free
    if free < needed + _SPARE_BYTES:
        raise OblivionError(
            f"{root}: a commit writes {needed + _SPARE_BYTES} bytes and {free} are free; free some space. "
            "Nothing was changed"
        )


def _unfinished(workflow: Workflow) -> list[Record]:
    """The committed removals whose evidence is not there yet."""
    where = workflow.run.root / "forgets"
    removals = [removal for removal in workflow.register.removals() if "evidence" in removal.content]
    return [r for r in removals if not (where / str(r.content["branch"]) / "evidence.json").is_file()]


def finish_commits(workflow: Workflow) -> dict[str, str]:
    """Erase files and numbers of committed removals, write report and evidence, where that is not done yet.

    Returns
    -------
    dict
        The trials whose commit was finished here, or could not be: then with the reason, in words.
    """
    done: dict[str, str] = {}
    removals = _unfinished(workflow)
    for removal in removals:
        trial = str(removal.content["branch"])
        asked = workflow.register.asked(removal.content["request"])
        problems: list[str] = []
        if reason := outside(workflow.run.root, f"forgets/{trial}/evidence.json"):
            done[trial] = f"no evidence can be written: {reason}"
            continue
        for step in (
            lambda removal=removal, asked=asked: erase_numbers(workflow, removal, asked),
            lambda removal=removal, problems=problems: problems.extend(erase_files(workflow, removal)),
            # Before evidence, which says that all is done.
            lambda: write_report([workflow.run.root], workflow.run.root / "report.html"),
        ):
            try:
                step()
            except OblivionError as error:
                problems.append(str(error))
        if not problems:
            try:
                workflow.run.write_json(f"forgets/{trial}/evidence.json", _evidence(workflow, removal))
            except OblivionError as error:
                problems.append(str(error))
        done[trial] = "; ".join(problems)
    if done:
        workflow.reload()
    return done


def unfinished(workflow: Workflow, trial: str, problem: str) -> str:
    """What to do about a commit that could not be finished, in words."""
    how = f"oblivion forget {workflow.run.root} --commit {trial}"
    return f"{trial} is committed, and not all is erased yet: {problem}. Then finish it with: {how}"


def _evidence_beforehand(
    workflow: Workflow, asked: Asked, entry: Mapping[str, Any], plan: Mapping[str, Any], name: str, replayed: int
) -> dict[str, Any]:
    """What evidence will say that is known before the commit, so that no file is needed for it afterwards."""
    request, manifest, models = asked.request, workflow.run.read_json("manifest.json", {}), entry["models"]
    told = {key: model for key, model in models.items() if key in ("original", name) or key.startswith("oracle")}
    try:
        return {
            "request": {
                "id": request.id,
                "client": request.client_id,
                "scope": "client" if request.whole_client else "samples",
                "samples": entry["rows"],
                **({"shared": entry["shared"]} if "shared" in entry else {}),
                "issued_at": request.issued_at,
                "received_at": asked.received_at,
                "due_at": asked.due_at,
                "key_id": _key_id(workflow, asked),
            },
            "plan": {
                "method": plan["method"],
                "label": plan["label"],
                "guarantee": plan["guarantee"],
                **({"accepted_no_guarantee": True} if plan["guarantee"] == "none" else {}),
                "from_round": plan["from_round"],
                "restored_round": _restored(plan),
                "phases": plan["phases"],
                "checklist": plan["touches"],
                "cost": {key: models[name]["cost"].get(key) for key in _COST},
                "rounds_checked_by_replay": replayed,
            },
            "measured": {"original": {}, "oracle": {}}
            | {"committed" if key == name else key: _numbers(model["central"]) for key, model in told.items()},
            "invalidated": plan["invalidates"],
            "environment": {part: manifest[part] for part in _ENVIRONMENT if part in manifest},
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{workflow.run.root}: plan.json of {request.id}/{name}, or metrics.json, is not complete ({error}); "
            "restore it, or run the removal again. Nothing was changed"
        ) from None


def _rehearse(workflow: Workflow, asked: Asked, facts: Mapping[str, Any]) -> None:
    """Seal evidence as it will be, with a key and a log of its own, so that nothing can be wrong with it afterwards."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    workflow.ledger.keys.signing()
    key = Ed25519PrivateKey.generate()
    entry = canonical({"request": asked.request.id} | {n: facts[n] for n in ("guarantee", "before", "after")})
    leaf = leaf_hash(entry.encode())
    log = {"entry": entry, "index": 0, "proof": [], **sign_checkpoint(key, 1, leaf).to_json()}
    content = {**facts, "erased": {}, "committed_at": stamp(workflow.ledger.book.now())}
    seal(_statement(content, log), key)


def _evidence(workflow: Workflow, removal: Record) -> dict[str, Any]:
    signing = workflow.ledger.keys.signing()
    write_atomically(workflow.run.root / PUBLIC_KEY, _pem(signing.public_key()))
    return seal(_statement(removal.content, _log_proof(workflow, removal)), signing)


def _statement(said: Mapping[str, Any], log: Mapping[str, Any]) -> dict[str, Any]:
    """The statement of a removal's record."""
    known = said["evidence"]
    content = predicate(
        request={**known["request"], "committed_at": said["committed_at"]},
        plan=known["plan"],
        measured=known["measured"],
        erased={
            **{f"{kind}s": said["erased"].get(kind, 0) for kind in ("contribution", "state", "key")},
            **{kind: len(names) for kind, names in said["erases"].items()},
            "invalidated": known["invalidated"],
        },
        log=log,
        environment=known["environment"],
        limits=LIMITS,
    )
    return statement(said["before"], said["after"], content)


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


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _digest(path: Path) -> str:
    return _sha256(path.read_bytes()) if path.is_file() else ""


def _digests(folder: Path) -> dict[str, str]:
    return {name: _digest(folder / name) for name in (CONFIG, WEIGHTS)}
