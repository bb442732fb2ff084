"""Check the evidence of a removal: stand-alone, with Python 3.11 or newer and the package ``cryptography`` only.

``python verify_evidence.py evidence.json --key public.pem``, with the options of `main`. Exit codes: 0 no check failed,
4 one failed, 3 unreadable, 2 wrong usage. Sources: DSSE protocol 1.0.0, in-toto Statement v1, RFC 6962 sections 2.1 and
2.1.1. Deviation from DSSE: a signature that names the given key must be its own, and nothing unsigned stands beside it.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import importlib
import json
import re
import reprlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

PREDICATE_TYPE = "urn:oblivion:federated-unlearning:1"
PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
GUARANTEES = {
    "exact": "bit for bit the model that training without the data gives, on one kind of machine",
    "certified": "within a stated statistical bound of a model that was trained without the data",
    "approximate": "moved towards a model trained without the data; how near it came is measured, not proven",
    "none": "the client takes no further part; what the model had learned from the data was not removed",
}
ERASED = ("contributions", "states", "keys", "adapters", "files")
ADAPTER = "after/adapter_model.safetensors"
MAX_BYTES, MAX_COUNT = 16 * 2**20, 2**53

# Shapes of JSON values. (x,): x or null. [x]: a list, [x, 1]: a list with one at least. "*": any name. dict: not {}.
_TEXT = re.compile(r"[^\ud800-\udfff]+")  # a lone surrogate can be neither hashed nor printed
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)")
_DIGEST, _SIGNATURE = re.compile("[0-9a-f]{64}"), re.compile("[0-9a-f]{128}")
_TYPE = re.compile(re.escape(PAYLOAD_TYPE))
_ENVELOPE = {"payload": _TEXT, "payloadType": _TYPE, "signatures": [{"keyid": _TEXT, "sig": _TEXT}, 1]}
_SUBJECT = {"name": re.compile("(before|after)(/[A-Za-z0-9_][A-Za-z0-9._-]*)+"), "digest": {"sha256": _DIGEST}}
_TIMES = ("issued_at", "received_at", "due_at", "committed_at")
_REQUEST = {"id": _TEXT, "client": _TEXT, "key_id": _TEXT, "scope": re.compile("client|samples"), "samples": (int,)}
_ITEM = {"item": _TEXT, "status": re.compile("cleaned|unaffected|not covered"), "why": _TEXT}
_ROUNDS = {"from_round": int, "restored_round": (int,), "cost": {"client_steps": int, "fraction": (float,)}}
_PLAN = {"method": _TEXT, "label": _TEXT, "guarantee": re.compile("|".join(GUARANTEES)), "phases": [dict]}
_PREDICATE = {
    "request": _REQUEST | dict.fromkeys(_TIMES, _TIME),
    "plan": _PLAN | _ROUNDS | {"checklist": [_ITEM, 1]},
    "measured": {"*": {"*": {"value": (float,), "interval": ([float],), "n": int}}},
    "erased": dict.fromkeys(ERASED, int) | {"invalidated": [_TEXT]},
    "log": {"entry": _TEXT, "index": int, "size": int, "root": _DIGEST, "proof": [_DIGEST], "signature": _SIGNATURE},
    "environment": {"versions": dict, "code_fingerprint": _TEXT, "machine": dict, "model_digest": _TEXT},
    "limits": [_TEXT, 1],
}
_TYPES = {"_type": re.compile(re.escape(STATEMENT_TYPE)), "predicateType": re.compile(PREDICATE_TYPE)}
_STATEMENT = _TYPES | {"subject": [_SUBJECT], "predicate": dict}


class UnreadableError(Exception):
    """The evidence, the key or a folder cannot be read at all; the message says which and why."""


@dataclass(frozen=True)
class Check:
    """The outcome of one check, and in words what was found."""

    name: str
    status: Literal["ok", "NONE", "FAILED", "not checked"]
    detail: str


def pae(payload_type: str, payload: bytes) -> bytes:
    """DSSE's pre-authentication encoding: the bytes that are signed."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def key_id(key: Ed25519PublicKey) -> str:
    """SHA-256 of the raw public key, in hex."""
    return hashlib.sha256(key.public_bytes_raw()).hexdigest()


def root_from(leaf: bytes, index: int, size: int, proof: Sequence[bytes]) -> bytes:
    """The root of a log of `size` entries whose `index`-th hash is `leaf`; ValueError if `proof` has a wrong length."""
    if (index, size, len(proof)) == (0, 1, 0):
        return leaf
    if size < 2 or not proof:
        raise ValueError("the proof has not the length that the entry's place asks for")
    middle = 1 << ((size - 1).bit_length() - 1)
    if index < middle:
        return hashlib.sha256(b"\1" + root_from(leaf, index, middle, proof[:-1]) + proof[-1]).digest()
    return hashlib.sha256(b"\1" + proof[-1] + root_from(leaf, index - middle, size - middle, proof[:-1])).digest()


def verify(envelope: bytes, key_pem: bytes, before: Path | None = None, after: Path | None = None) -> list[Check]:
    """Check an evidence file.

    Parameters
    ----------
    envelope : bytes
        The content of ``evidence.json``.
    key_pem : bytes
        The ledger's public key, got from elsewhere.
    before, after : Path, optional
        Folders with the adapters.

    Returns
    -------
    list of Check
        In order. Where one fails that the others rest on, the last says that they were not made.

    Raises
    ------
    UnreadableError
        If the evidence is no JSON or the key is no Ed25519 public key.
    """
    key = _load_key(key_pem)
    if len(envelope) > MAX_BYTES:
        raise UnreadableError(f"the evidence is larger than {MAX_BYTES} bytes")
    try:
        outer = _parse(envelope)
    except ValueError as error:
        raise UnreadableError(f"the evidence is not JSON: {error}") from None
    checks = [_check("envelope", _envelope, outer)]
    checks += [] if failed(checks) else _signature_checks(outer, key)
    checks += [] if failed(checks) else statement_checks(_unbase64(outer["payload"]), key)
    if failed(checks):
        return [*checks, Check("all else", "not checked", "it would rest on what failed")]
    subjects = {s["name"]: s["digest"]["sha256"] for s in _parse(_unbase64(outer["payload"]))["subject"]}
    for name, digest in subjects.items():
        when, _, file = name.partition("/")
        folder = before if when == "before" else after
        skipped = Check(name, "not checked", f"--{when} was not given")
        checks.append(_check(name, _file, folder / file, digest) if folder else skipped)
    return checks


def statement_checks(payload: bytes, key: Ed25519PublicKey) -> list[Check]:
    """Check what a statement says, apart from who signed it and the files that it names."""
    checks = [_check("statement", _statement, payload)]
    if not failed(checks):
        predicate = _parse(payload)["predicate"]
        promised = _check("guarantee", _guarantee, predicate["plan"])
        if (
            promised.status == "ok" and predicate["plan"]["guarantee"] == "none"
        ):  # well-formed, and no reason to call anything ok
            promised = Check("guarantee", "NONE", promised.detail)
        checks += [promised, _check("due date", _due, predicate["request"])]
        checks.append(_check("log", _log, predicate, _parse(payload)["subject"], key))
    return checks


def failed(checks: Sequence[Check]) -> bool:
    """Whether one of the checks failed."""
    return any(check.status == "FAILED" for check in checks)


def _check(name: str, function: Callable[..., str], *arguments: Any) -> Check:
    """Run a check, which returns what it found and raises if that is wrong."""
    try:
        return Check(name, "ok", function(*arguments))
    except (ValueError, OSError) as error:
        return Check(name, "FAILED", str(error))


def _load_key(pem: bytes) -> Ed25519PublicKey:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        key = load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if isinstance(key, Ed25519PublicKey):
        return key
    raise UnreadableError("the key is not an Ed25519 public key in PEM")


def _parse(data: bytes) -> Any:
    """JSON in UTF-8 that no two readers see differently: no key twice."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) != len(pairs):
            raise ValueError("a key stands twice in one object")
        return dict(pairs)

    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=unique)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _unbase64(text: str) -> bytes:
    """The bytes of standard or URL-safe base64 in its one canonical form; empty for anything else."""
    standard = text.replace("-", "+").replace("_", "/")
    try:
        data = base64.b64decode(standard, validate=True)
    except ValueError:
        return b""
    return data if base64.b64encode(data).decode() == standard else b""


def _fit(value: Any, shape: Any, where: str) -> None:
    """Raise ValueError, with the place, unless a JSON value has the shape; see `_PREDICATE`."""
    if isinstance(shape, tuple):
        if value is not None:
            _fit(value, shape[0], where)
    elif isinstance(shape, dict) and isinstance(value, dict):
        for name in value if "*" in shape else shape:
            if name not in value:
                raise ValueError(f"{where}.{name} is missing")
            _fit(value[name], shape.get(name, shape.get("*")), f"{where}.{name}")
    elif isinstance(shape, list) and isinstance(value, list) and len(value) >= len(shape) - 1:
        for index, item in enumerate(value):
            _fit(item, shape[0], f"{where}[{index}]")
    elif not _is(value, shape):
        name = getattr(shape, "pattern", getattr(shape, "__name__", type(shape).__name__))
        raise ValueError(f"{where} is {reprlib.repr(value)}; expected {name}")


def _is(value: Any, shape: Any) -> bool:
    if isinstance(shape, re.Pattern):
        return isinstance(value, str) and shape.fullmatch(value) is not None
    if shape is dict:
        return isinstance(value, dict) and value != {}
    number = type(value) is int and value >= 0 if shape is int else type(value) in (int, float)
    return shape in (int, float) and number and abs(value) <= MAX_COUNT  # so that it can be written out


def _envelope(envelope: Any) -> str:
    _fit(envelope, _ENVELOPE, "envelope")
    signatures = envelope["signatures"]
    bare = len(envelope) == 3 and all(len(signature) == 2 for signature in signatures)
    if not bare or len(signatures) > 16 or not _unbase64(envelope["payload"]):
        raise ValueError(
            "expected a base64 payload, its type, 1 to 16 signatures of keyid and sig, nothing beside them"
        )
    return PAYLOAD_TYPE


def _signature_checks(envelope: dict[str, Any], key: Ed25519PublicKey) -> list[Check]:
    ours = [s["sig"] for s in envelope["signatures"] if s["keyid"] == key_id(key)]
    others = [s["keyid"] for s in envelope["signatures"] if s["keyid"] != key_id(key)]
    if not ours:
        return [Check("signature", "FAILED", f"by {', '.join(others)}; the given key is {key_id(key)}")]
    signed = pae(PAYLOAD_TYPE, _unbase64(envelope["payload"]))
    checks = [_check("signature", _signature, key, _unbase64(signature), signed, "payload") for signature in ours]
    return checks + [Check("signature", "not checked", f"by {other}, whose key was not given") for other in others]


def _signature(key: Ed25519PublicKey, signature: bytes, data: bytes, what: str) -> str:
    from cryptography.exceptions import InvalidSignature

    try:
        key.verify(signature, data)
    except InvalidSignature:
        raise ValueError(f"the given key {key_id(key)} has not signed this {what}") from None
    return f"by the given key {key_id(key)}"


def _statement(payload: bytes) -> str:
    statement = _parse(payload)
    _fit(statement, _STATEMENT, "statement")
    names = {subject["name"] for subject in statement["subject"]}
    if len(names) != len(statement["subject"]) or not {ADAPTER, ADAPTER.replace("after", "before")} <= names:
        raise ValueError(f"the subjects are not {ADAPTER}, the same before and what else, each once")
    check_predicate(statement["predicate"])
    return f"{PREDICATE_TYPE} on {len(names)} files, with all its fields"


def check_predicate(predicate: Any) -> None:
    """Raise ValueError, with the place, unless a predicate has all its fields and they agree."""
    _fit(predicate, _PREDICATE, "predicate")
    request, measured = predicate["request"], predicate["measured"]
    if request["scope"] == "samples" and not request["samples"]:
        raise ValueError("request.samples does not say how many")
    _, received, _, committed = (datetime.fromisoformat(request[name]) for name in _TIMES)
    if committed < received:
        raise ValueError("request.committed_at is before request.received_at")
    removals = [model for model in measured if not re.fullmatch("original|oracle(-[0-9]+)?", model)]
    if not {"original", "oracle"} <= set(measured) or len(removals) != 1 or not measured[removals[0]]:
        raise ValueError("measured does not hold original, oracle and the one committed removal with its metrics")
    _fit(request.get("shared"), ([_TEXT, 1],), "request.shared")
    if len(request.get("shared") or ()) > (request["samples"] or MAX_COUNT):
        raise ValueError("request.shared names more rows than request.samples")
    _fit(predicate["plan"]["cost"].get("token_fraction"), (float,), "plan.cost.token_fraction")
    intervals = [metric["interval"] for metrics in measured.values() for metric in metrics.values()]
    if any(i is not None and (len(i) != 2 or i[0] > i[1]) for i in intervals):
        raise ValueError("an interval in measured is not [low, high]")


def _guarantee(plan: dict[str, Any]) -> str:
    uncovered = [item["item"] for item in plan["checklist"] if item["status"] == "not covered"]
    if plan["guarantee"] == "exact" and uncovered:
        raise ValueError(f"exact, but the checklist does not cover: {', '.join(uncovered)}")
    if plan["guarantee"] == "none" and plan.get("accepted_no_guarantee") is not True:
        raise ValueError("none, and the evidence does not say that whoever committed accepted that")
    return f"{plan['guarantee']}, {len(uncovered)} of {len(plan['checklist'])} items of the checklist not covered"


def _due(request: dict[str, Any]) -> str:
    committed, due = (datetime.fromisoformat(request[name]) for name in ("committed_at", "due_at"))
    return f"LATE by {committed - due}" if committed > due else f"kept, {due - committed} to spare"


def _log(predicate: dict[str, Any], subjects: list[dict[str, Any]], key: Ed25519PublicKey) -> str:
    log, asked, promised = predicate["log"], predicate["request"]["id"], predicate["plan"]["guarantee"]
    said, after = _parse(log["entry"].encode()), [s["digest"]["sha256"] for s in subjects if s["name"] == ADAPTER]
    _fit(said, {"request": re.compile(re.escape(asked)), "guarantee": re.compile(promised)}, "log.entry")
    if after[0] not in log["entry"]:
        raise ValueError(f"log.entry does not name the sha256 of {ADAPTER}")
    leaf = hashlib.sha256(b"\0" + log["entry"].encode()).digest()
    if root_from(leaf, log["index"], log["size"], [bytes.fromhex(d) for d in log["proof"]]).hex() != log["root"]:
        raise ValueError(f"entry {log['index']} of {log['size']} is not under the root {log['root']}")
    checkpoint = f"oblivion ledger checkpoint 1\n{log['size']}\n{log['root']}\n"
    _signature(key, bytes.fromhex(log["signature"]), checkpoint.encode(), "checkpoint")
    return f"entry {log['index']} of {log['size']} under a signed checkpoint is this removal"


def _file(path: Path, digest: str) -> str:
    if not path.is_file():  # a pipe would block
        raise ValueError(f"{path} is not there")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != digest:
        raise ValueError(f"its sha256 is {found}; the evidence says {digest}")
    return f"sha256 {digest}"


def _share(value: float | None) -> str:
    return "an unknown part" if value is None else f"{value:.2g}"


def in_words(predicate: dict[str, Any]) -> list[str]:
    """A predicate that passed its checks, for people."""
    request, plan, erased = predicate["request"], predicate["plan"], predicate["erased"]
    what = "everything" if request["scope"] == "client" else f"{request['samples']} samples"
    shared = f"others also hold {len(request.get('shared') or ())} of these rows; they stay learned from there: "
    shared += ", ".join(dict.fromkeys(request.get("shared") or ()))
    shares = _share(plan["cost"]["fraction"])
    if plan["cost"].get("token_fraction") is not None:
        shares += f" (in tokens {_share(plan['cost']['token_fraction'])})"
    start = "no state restored" if plan["restored_round"] is None else f"state {plan['restored_round']} restored"
    lines = [
        f"Asked: that {what} of {request['client']} be forgotten (request {request['id']}, key {request['key_id']})",
        *([f"  {shared}"] if request.get("shared") else []),
        *(f"  {name}: {request[f'{name}_at']}" for name in ("issued", "received", "due", "committed")),
        f"Done: {plan['label']} ({plan['method']}); undone from round {plan['from_round']} on, {start}",
        *("  phase: " + ", ".join(f"{k} {reprlib.repr(v)}" for k, v in phase.items()) for phase in plan["phases"]),
        f"  cost: {plan['cost']['client_steps']} client-steps, {shares} of retraining",
        *(f"  {item['status']}: {item['item']} ({item['why']})" for item in plan["checklist"]),
        "Erased: " + ", ".join(f"{erased[kind]} {kind}" for kind in ERASED),
        *(f"  no longer valid: {name}" for name in erased["invalidated"]),
        f"Guarantee: {plan['guarantee']}: {GUARANTEES[plan['guarantee']]}",
        *(["  accepted as it is by whoever committed it"] if plan["guarantee"] == "none" else []),
        "Measured, with intervals:",
    ]
    for model, metrics in predicate["measured"].items():
        lines += [] if metrics else [f"  {model}: not measured"]
        for name, metric in metrics.items():
            value = "not measured" if metric["value"] is None else f"{metric['value']:.4g}"
            interval = "no interval" if metric["interval"] is None else "[{:.4g}, {:.4g}]".format(*metric["interval"])
            lines.append(f"  {model}, {name}: {value}, {interval}, over {metric['n']} rows")
    return [*lines, "What this does not prove:", *(f"  - {limit}" for limit in predicate["limits"])]


def _replay(run: Path, statement: dict[str, Any]) -> Check:
    expected = next(s["digest"]["sha256"] for s in statement["subject"] if s["name"] == ADAPTER)
    try:
        replay = importlib.import_module("oblivion.federation.replay")
        found = replay.verify_head(run, statement["predicate"]["request"]["id"])
    except Exception as error:  # whatever stops it, the model was not computed again
        return Check("replay", "FAILED", f"{type(error).__name__}: {error}")
    if found == "":
        return Check("replay", "not checked", "the run has erased this model since, for another removal")
    return Check("replay", "ok" if found == expected else "FAILED", f"sha256 {found}; the evidence says {expected}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Check from the command line; returns the exit code."""
    parser = argparse.ArgumentParser(description="Check the evidence of a removal.")
    parser.add_argument("evidence", type=Path)
    parser.add_argument("--key", type=Path, required=True, help="the ledger's public key, in PEM")
    for when in ("before", "after"):
        parser.add_argument(f"--{when}", type=Path, metavar="DIR", help=f"the adapter {when} the removal")
    parser.add_argument("--run", type=Path, help="the run, to compute the model again (needs Oblivion)")
    options = parser.parse_args(arguments)
    try:
        for folder in (options.before, options.after, options.run):
            if folder is not None and not folder.is_dir():
                raise UnreadableError(f"{folder} is not a folder")
        with options.evidence.open("rb") as file, options.key.open("rb") as key:
            data, pem = file.read(MAX_BYTES + 1), key.read(MAX_BYTES)
        checks = verify(data, pem, options.before, options.after)
    except (UnreadableError, OSError, ImportError) as error:  # no cryptography
        sys.stderr.write(f"{_plain(str(error))}\n")
        return 3
    words = ["The statement is not shown: it does not hold."]
    if checks[-1].name != "all else":
        statement = _parse(_unbase64(_parse(data)["payload"]))
        skipped = Check("replay", "not checked", "--run was not given")
        checks.append(_replay(options.run, statement) if options.run else skipped)
        words = in_words(statement["predicate"])
    lines = [f"{check.status:<12} {check.name}: {check.detail}" for check in checks] + ["", *words]
    sys.stdout.write("".join(f"{_plain(line)}\n" for line in lines))
    return 4 if failed(checks) else 0


def _plain(text: str) -> str:
    return text.encode("unicode_escape").decode("ascii")  # so that it can neither steer a terminal nor fake a line


if __name__ == "__main__":
    sys.exit(main())
