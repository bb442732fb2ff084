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

from oblivion.aggregation.schemes.products import as_adapter
from oblivion.errors import ConfigError, IntegrityError, OblivionError, PlanRefusedError, nearest
from oblivion.federation.erasing import (
    check_removable,
    erase_files,
    erase_numbers,
    files_to_erase,
    leads_outside,
    private_to_erase,
    why_it_stays,
)
from oblivion.federation.opened import OpenRun
from oblivion.federation.results import Results
from oblivion.files import write_atomically
from oblivion.ledger.book import Record, stamp
from oblivion.ledger.checkpoint import sign_checkpoint
from oblivion.ledger.erasure import commit_removal
from oblivion.ledger.evidence import LIMITS, predicate, seal, statement
from oblivion.ledger.merkle import inclusion_proof, leaf_hash
from oblivion.ledger.opening import DATABASE
from oblivion.ledger.reading import canonical
from oblivion.ledger.register import RequestStatus
from oblivion.models.adapter_folder import CONFIG, WEIGHTS
from oblivion.models.resident import weight_bytes
from oblivion.report import write_report
from oblivion.report.page import build_report
from oblivion.run.records import Measure, PlanRecord, RequestRecord, read_plan
from oblivion.run_format import PUBLIC_KEY
from oblivion.untrusted import shown

_CODE = ("versions", "commit", "code_fingerprint", "packages", "packages_added")
_ENVIRONMENT = (*_CODE, "model", "model_digest", "seed", "engine", "machine")
"""What of the manifest goes into evidence: nothing of who else takes part, or of their data."""


_COST = ("client_steps", "fraction")
_NUMBERS = ("value", "interval", "n")
_REWRITTEN = ("metrics.json", "manifest.json", "config.toml", "events.jsonl", "report.html", PUBLIC_KEY)
_SPARE_BYTES = 2**20


def commit_trial(opened: OpenRun, trial: str, accept_no_guarantee: bool = False) -> str:
    """Make a trial the head of the run.

    All that is needed afterwards is checked before the ledger's transaction, and what evidence will say is in it.

    Parameters
    ----------
    opened : OpenRun
        The run.
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
    asked, entry = _find(opened, trial)
    name, folder = trial.partition("/")[2], opened.run.root / "forgets" / trial
    plan = read_plan(opened.run.root, trial)
    _check_guarantee(plan.guarantee, accept_no_guarantee)
    replay = opened.replay
    replayed, after = replay.check(trial), replay.head(trial).state
    if hashlib.sha256(weight_bytes(as_adapter(after))).hexdigest() != _digest(folder / "adapters" / WEIGHTS):
        raise IntegrityError(f"{folder}/adapters is not what the ledger says; was it changed? Try the removal again")
    # What was learned is known, also where somebody removed its folder; only its settings then need the base model.
    settings = _digest(opened.run.root / opened.head_folder / CONFIG)
    learned = weight_bytes(as_adapter(replay.head(opened.head).state))
    before = {CONFIG: settings or _sha256(Results(opened).head_settings()), WEIGHTS: _sha256(learned)}
    found = files_to_erase(opened, asked, trial)
    found["files"] += private_to_erase(opened, asked, trial, plan.from_round, plan.guarantee == "exact")
    erases = _not_pending(opened, found)
    facts = {
        "trial": name,
        "whole_client": asked.request.whole_client,
        "guarantee": plan.guarantee,
        "accepted_no_guarantee": plan.guarantee == "none",
        "from_round": plan.from_round,
        "before": before,
        "after": _digests(folder / "adapters"),
        "erases": erases,
        "evidence": _evidence_beforehand(opened, asked, entry, plan, name, replayed),
    }
    _rehearse(opened, asked, facts)
    check_removable(opened.run.root, [*erases["adapters"], *erases["files"], f"forgets/{trial}/evidence.json"])
    _check_writable(opened, folder)
    build_report([opened.run.root])  # it must be possible afterwards
    opened.observer.event("phase", text=f"committing {trial}: erasing what holds the forgotten data")
    commit_removal(opened.ledger, opened.register, asked, trial, facts)
    return finish_commits(opened)[trial]


def _find(opened: OpenRun, trial: str) -> tuple[RequestStatus, RequestRecord]:
    """The open request of a trial, and its entry in ``metrics.json``."""
    request_id, _, name = trial.partition("/")
    asked = opened.register.asked(request_id)
    if not asked.open:
        raise PlanRefusedError(f"{request_id} is {asked.state} already{f': {asked.ground}' if asked.ground else ''}")
    entry = Results(opened).record().request(request_id)
    models = entry.models if entry else {}
    if entry is None or name not in models or not opened.has(trial):
        known = [key for key in models if opened.has(f"{request_id}/{key}")]
        what = f"{request_id} has no trial '{name}' at the present head; {nearest(name, known)}"
        raise ConfigError(what if name else f"{what}; give {request_id}/TRIAL")
    return asked, entry


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


def _not_pending(opened: OpenRun, erases: dict[str, list[str]]) -> dict[str, list[str]]:
    """Without what an earlier commit has still to erase: that one is stuck, not this."""
    pending = {
        name
        for removal in _unfinished(opened)
        for names in removal.content["erases"].values()
        for name in names
        if not opened.has("/".join(name.split("/")[1:3]))
    }
    return {kind: [name for name in names if name not in pending] for kind, names in erases.items()}


def _check_writable(opened: OpenRun, folder: Path) -> None:
    """Refuse where what a commit writes afterwards could not be written."""
    root = opened.run.root
    paths = [*(root / name for name in _REWRITTEN), folder / "evidence.json", *sorted(root.glob("ledger/*"))]
    for path in [*paths, *sorted(root.glob("keys/*")), *sorted(root.glob("forgets/*/*/metrics.json"))]:
        reason = "it is a folder" if path.is_dir() and path.name in _REWRITTEN else why_it_stays(path)
        if reason:
            raise OblivionError(f"{path} could not be written: {reason}; make it writable. Nothing was changed")
    needed = sum((root / name).stat().st_size for name in (*_REWRITTEN, DATABASE) if (root / name).is_file())
    free = shutil.disk_usage(root).free
    if free < needed + _SPARE_BYTES:
        raise OblivionError(
            f"{root}: a commit writes {needed + _SPARE_BYTES} bytes and {free} are free; free some space. "
            "Nothing was changed"
        )


def _unfinished(opened: OpenRun) -> list[Record]:
    """The committed removals whose evidence is not there yet."""
    where = opened.run.root / "forgets"
    removals = [removal for removal in opened.register.removals() if "evidence" in removal.content]
    return [r for r in removals if not (where / str(r.content["branch"]) / "evidence.json").is_file()]


def finish_commits(opened: OpenRun) -> dict[str, str]:
    """Erase files and numbers of committed removals, write report and evidence, where that is not done yet.

    Returns
    -------
    dict
        The trials whose commit was finished here, or could not be: then with the reason, in words.
    """
    done: dict[str, str] = {}
    removals = _unfinished(opened)
    for removal in removals:
        trial = str(removal.content["branch"])
        asked = opened.register.asked(removal.content["request"])
        problems: list[str] = []
        if reason := leads_outside(opened.run.root, f"forgets/{trial}/evidence.json"):
            done[trial] = f"no evidence can be written: {reason}"
            continue
        for step in (
            lambda removal=removal, asked=asked: erase_numbers(opened, removal, asked),
            lambda removal=removal, problems=problems: problems.extend(erase_files(opened, removal)),
            # Before evidence, which says that all is done.
            lambda: write_report([opened.run.root], opened.run.root / "report.html"),
        ):
            try:
                step()
            except OblivionError as error:
                problems.append(str(error))
        if not problems:
            try:
                opened.run.write_json(f"forgets/{trial}/evidence.json", _evidence(opened, removal))
            except OblivionError as error:
                problems.append(str(error))
        done[trial] = "; ".join(problems)
    if done:
        opened.reload()
    return done


def unfinished(opened: OpenRun, trial: str, problem: str) -> str:
    """What to do about a commit that could not be finished, in words."""
    how = f"oblivion commit {opened.run.root} {trial}"
    return f"{trial} is committed, and not all is erased yet: {problem}. Then finish it with: {how}"


def _evidence_beforehand(
    opened: OpenRun, asked: RequestStatus, entry: RequestRecord, plan: PlanRecord, name: str, replayed: int
) -> dict[str, Any]:
    """What evidence will say that is known before the commit, so that no file is needed for it afterwards."""
    request, manifest, models = asked.request, opened.run.read_json("manifest.json", {}), entry.models
    told = {key: model for key, model in models.items() if key in ("original", name) or key.startswith("oracle")}
    return {
        "request": {
            "id": request.id,
            "client": request.client_id,
            "scope": "client" if request.whole_client else "samples",
            "samples": entry.rows,
            **({"shared": list(entry.shared)} if entry.shared else {}),
            "issued_at": request.issued_at,
            "received_at": asked.received_at,
            "due_at": asked.due_at,
            "key_id": _key_id(opened, asked),
        },
        "plan": {
            "method": plan.method,
            "label": plan.label,
            "guarantee": plan.guarantee,
            **({"accepted_no_guarantee": True} if plan.guarantee == "none" else {}),
            "from_round": plan.from_round,
            "restored_round": plan.restored_round,
            "phases": [phase.to_json() for phase in plan.phases],
            "checklist": [item.to_json() for item in plan.checklist],
            "cost": {key: getattr(models[name].cost, key) for key in _COST},
            "rounds_checked_by_replay": replayed,
        },
        "measured": {"original": {}, "oracle": {}}
        | {"committed" if key == name else key: _numbers(model.central) for key, model in told.items()},
        "invalidated": list(plan.invalidates),
        "environment": {part: manifest[part] for part in _ENVIRONMENT if part in manifest},
    }


def _rehearse(opened: OpenRun, asked: RequestStatus, facts: Mapping[str, Any]) -> None:
    """Seal evidence as it will be, with a key and a log of its own, so that nothing can be wrong with it afterwards."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    opened.ledger.keys.signing()
    key = Ed25519PrivateKey.generate()
    entry = canonical({"request": asked.request.id} | {n: facts[n] for n in ("guarantee", "before", "after")})
    leaf = leaf_hash(entry.encode())
    log = {"entry": entry, "index": 0, "proof": [], **sign_checkpoint(key, 1, leaf).to_json()}
    content = {**facts, "erased": {}, "committed_at": stamp(opened.ledger.book.now())}
    seal(_statement(content, log), key)


def _evidence(opened: OpenRun, removal: Record) -> dict[str, Any]:
    signing = opened.ledger.keys.signing()
    write_atomically(opened.run.root / PUBLIC_KEY, _pem(signing.public_key()))
    return seal(_statement(removal.content, _log_proof(opened, removal)), signing)


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


def _numbers(central: Mapping[str, Measure]) -> dict[str, Any]:
    values = {name: measure.to_json() for name, measure in central.items()}
    return {name: {key: said.get(key) for key in _NUMBERS} for name, said in values.items()}


def _log_proof(opened: OpenRun, removal: Record) -> dict[str, Any]:
    entries = opened.ledger.book.entries()
    checkpoint = opened.ledger.book.checkpoint()
    leaves = [leaf_hash(entry.encode()) for entry in entries]
    proof = inclusion_proof(leaves, removal.seq - 1, checkpoint.size)
    return {
        "entry": entries[removal.seq - 1],
        "index": removal.seq - 1,
        "proof": [node.hex() for node in proof],
        **checkpoint.to_json(),
    }


def _key_id(opened: OpenRun, asked: RequestStatus) -> str:
    key = opened.register.public_key(asked.request.client_id)
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
