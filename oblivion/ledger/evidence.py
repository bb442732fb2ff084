"""Evidence of a committed removal: what was done, what was measured, and what that does not prove.

An in-toto Statement v1 (https://in-toto.io/Statement/v1) about the adapter files before and after, in a DSSE 1.0.0
envelope that the ledger's Ed25519 key signs. No deviation from either; the predicate type is our own. What a complete
predicate is stands in `oblivion.ledger.verify_evidence`, which anyone can run alone: whatever it would refuse is never
signed here.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from oblivion.errors import IntegrityError
from oblivion.ledger.verify_evidence import (
    PAYLOAD_TYPE,
    PREDICATE_TYPE,
    STATEMENT_TYPE,
    check_predicate,
    failed,
    key_id,
    pae,
    statement_checks,
)

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

__all__ = ["LIMITS", "PAYLOAD_TYPE", "PREDICATE_TYPE", "predicate", "seal", "statement"]

LIMITS = (
    "That the data has no influence on the model: no inspection of a model's weights can prove that.",
    "That the model has forgotten: the measurements can show that it has not, never that it has.",
    "Anything about copies outside this run: backups, what clients kept, adapters that were handed out, and what "
    "readers of the old model remember.",
    "On which data the clients really trained: that is the server's word, and was not checked.",
    "That another machine gives the same bits: bit-exactness holds on one kind of machine and one set of versions.",
    "That nobody else holds the same data: rows that stay and are the same to the letter were counted, those that say "
    "it in other words were not looked for; the model has learned both from who holds them.",
    "Of an approximate method, that other clients' later updates are free of the data: they were computed from the old "
    "model and remain in this one.",
)
"""What evidence does not prove, in plain sentences; all of them stand in every statement."""


def predicate(
    *,
    request: Mapping[str, Any],
    plan: Mapping[str, Any],
    measured: Mapping[str, Mapping[str, Mapping[str, Any]]],
    erased: Mapping[str, Any],
    log: Mapping[str, Any],
    environment: Mapping[str, Any],
    limits: Sequence[str] = LIMITS,
) -> dict[str, Any]:
    """Put together what a statement says. All values are plain JSON; tuples become lists.

    Parameters
    ----------
    request : mapping
        ``id``, ``client``, ``key_id`` of the requester, ``scope`` (``"client"`` or ``"samples"``), ``samples`` (how
        many; may be None for a whole client), ``shared`` (ids of those that rows that stay hold, too, one for each row;
        missing where there are none), and ``issued_at``, ``received_at``, ``due_at``, ``committed_at`` as
        ``2026-01-31T12:00:00Z`` or with another offset.
    plan : mapping
        ``method``, ``label``, ``guarantee`` (exact, certified, approximate or none), ``from_round`` (0 if no round is
        undone), ``restored_round`` (whose state the removal began from, 0 for before training; None if no earlier
        state was restored), ``phases`` (objects), ``checklist`` (of ``{item, status, why}``) and ``cost``
        (``client_steps`` and ``fraction``, in client-steps; ``token_fraction``, in tokens, may be None or missing);
        with the guarantee none also ``accepted_no_guarantee``: True.
    measured : mapping
        Model to metric to ``{value, interval, n}``, for ``original``, ``oracle`` (also ``oracle-2``, ...) and the one
        committed removal, by any other name. Empty for an original or oracle that was not measured.
    erased : mapping
        Counts of ``contributions``, ``states``, ``keys``, ``adapters``, ``files``, and ``invalidated``: a list of what
        was removed or is no longer valid.
    log : mapping
        Of the commit: ``entry`` (canonical text, that names the ``request``, the ``guarantee`` and the digest of the
        adapter after), ``index`` (from 0), and of the checkpoint ``size``, ``root``, ``signature``, with the ``proof``
        that the entry is in it; bytes in hex.
    environment : mapping
        The run's manifest: ``versions``, ``code_fingerprint``, ``machine``, ``model_digest`` and what else it holds.
    limits : sequence of str, optional
        `LIMITS`, and more sentences if need be.

    Returns
    -------
    dict
        A copy.

    Raises
    ------
    IntegrityError
        If something that is required is missing or malformed; the message says which.
    """
    parts = {"request": request, "plan": plan, "measured": measured, "erased": erased, "log": log}
    content: dict[str, Any] = json.loads(_canonical({**parts, "environment": environment, "limits": limits}))
    try:
        check_predicate(content)
    except ValueError as error:
        raise IntegrityError(f"no evidence was made: {error}") from None
    missing = [limit for limit in LIMITS if limit not in content["limits"]]
    if missing:
        raise IntegrityError(f"no evidence was made: limits leaves out {missing[0]!r}")
    return content


def statement(before: Mapping[str, str], after: Mapping[str, str], predicate: Mapping[str, Any]) -> dict[str, Any]:
    """The in-toto statement.

    Parameters
    ----------
    before, after : mapping of str to str
        The files of the adapter before and after the removal, by path in its folder, with their SHA-256 in hex.
    predicate : mapping
        What the function `predicate` returned.

    Returns
    -------
    dict
        Its subjects are called ``before/...`` and ``after/...``.
    """
    named = {
        f"{when}/{name}": said for when, files in (("before", before), ("after", after)) for name, said in files.items()
    }
    return {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": name, "digest": {"sha256": said}} for name, said in sorted(named.items())],
        "predicateType": PREDICATE_TYPE,
        "predicate": dict(predicate),
    }


def seal(statement: Mapping[str, Any], key: Ed25519PrivateKey) -> dict[str, Any]:
    """Sign a statement that holds.

    Parameters
    ----------
    statement : mapping
        What the function `statement` returned.
    key : Ed25519PrivateKey
        The ledger's key, which signed the checkpoint in it.

    Returns
    -------
    dict
        The DSSE envelope: ``payloadType``, ``payload`` and ``signatures``. The same statement and key give the same
        envelope.

    Raises
    ------
    IntegrityError
        If the statement is not complete, contradicts itself, or its log entry is not under a checkpoint of this key.
    """
    payload = _canonical(statement)
    checks = statement_checks(payload, key.public_key())
    if failed(checks):
        problems = "; ".join(f"{check.name}: {check.detail}" for check in checks if check.status == "FAILED")
        raise IntegrityError(f"no evidence was signed: {problems}")
    signature = key.sign(pae(PAYLOAD_TYPE, payload))
    return {
        "payloadType": PAYLOAD_TYPE,
        "payload": base64.b64encode(payload).decode(),
        "signatures": [{"keyid": key_id(key.public_key()), "sig": base64.b64encode(signature).decode()}],
    }


def _canonical(value: Mapping[str, Any]) -> bytes:
    try:
        text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise IntegrityError(f"no evidence was made: it is not plain JSON ({error})") from None
    return text.encode("ascii")
