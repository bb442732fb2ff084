"""The ledger on disk: records in one SQLite file, sealed blobs beside it, keys apart.

A record exists only when its blob is durable, so a crash leaves at most blobs and keys without a record; these are
swept when the ledger is opened. Everything is written cohort by cohort. What is aggregated is what was stored: with
``precision = "bfloat16"`` updates are rounded before they are used, so that replay has the same bits.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from itertools import groupby
from typing import Any, Literal

from oblivion.aggregation.gate import GateState
from oblivion.aggregation.round import RoundState
from oblivion.errors import IntegrityError
from oblivion.ledger.blobs import Blobs, pack, seal, unpack, unseal
from oblivion.ledger.book import Book, Record, Writer
from oblivion.ledger.contents import about, branch_of, round_content, round_record
from oblivion.ledger.keys import Keys, contribution_key, noise_key, state_key
from oblivion.ledger.rounds import (
    Branch,
    Charged,
    CohortOutcome,
    RoundRecord,
    Selection,
    known_branch,
    line,
    reachable,
)
from oblivion.types import ClientUpdate, GlobalState

Precision = Literal["float32", "bfloat16"]
_OF_A_ROUND = ("selection", "cohort", "contribution", "state")
"""Kinds of records that a branch without history keeps of its last round only."""


class StoredLedger:
    """A `Ledger` that survives every crash.

    Parameters
    ----------
    book : Book
        The database; open.
    blobs : Blobs
        Where tensors are kept.
    keys : Keys
        What they are sealed with.
    precision : str, default "float32"
        How updates are stored, and so aggregated.
    retention : int, default 0
        For how many rounds contributions are kept; 0 for all.
    """

    def __init__(
        self, book: Book, blobs: Blobs, keys: Keys, precision: Precision = "float32", retention: int = 0
    ) -> None:
        self.book = book
        self.blobs = blobs
        self.keys = keys
        self.precision = precision
        self.retention = retention
        self._fresh: dict[tuple[int, int], dict[str, ClientUpdate]] = {}
        self._branches: dict[str, Branch] = {}
        self._numbers: dict[str, int] = {}
        self._last: dict[str, int] = {}
        self.reload()

    def reload(self) -> None:
        """Read the branches again after some were erased."""
        found = self.book.find("branch")
        self._branches = {record.key: branch_of(record) for record in found}
        self._numbers = {record.key: record.seq for record in found}
        self._last = {}

    def check_keys(self) -> None:
        """Refuse keys that are older than the ledger: a key is made before what it seals, and destroyed after it.

        Raises
        ------
        IntegrityError
            If one is missing that a record needs.
        """
        needed = {key_name(record) for record in self.book.find("contribution", "state") if record.blob is not None}
        if missing := sorted(needed - set(self.keys.names())):
            more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
            raise IntegrityError(
                f"{self.keys.folder / missing[0]}.key{more} is missing: what it sealed cannot be read; restore keys/ "
                "from its backup, the newest one: what was made since an older one is not in it"
            )

    def sweep(self) -> None:
        """Remove blobs and keys that no record needs: what a crash left before or after a transaction."""
        held = self.book.find("contribution", "state")
        needed = {record.blob for record in held}
        opened = {key_name(record) for record in held} | {noise_key(number) for number in self._numbers.values()}
        self.blobs.sweep()
        for name in sorted(self.blobs.names() - needed):
            self.blobs.delete(name)
        for key in [key for key in self.keys.names() if key not in opened]:
            self.keys.destroy(key)

    def open_branch(self, branch: Branch, start: RoundState | None = None) -> None:
        """Begin a branch; a name is used once."""
        if branch.name in self._branches:
            raise IntegrityError(f"branch {branch.name!r} exists already")
        with self.book.transaction() as writer:
            number = writer.add("branch", branch.name, asdict(branch))
            if start is not None:
                self._add_state(writer, number, start)
        self._branches[branch.name], self._numbers[branch.name] = branch, number

    def branches(self) -> tuple[Branch, ...]:
        """All branches in the order in which they began."""
        return tuple(self._branches.values())

    def branch(self, name: str) -> Branch:
        """One branch by its name."""
        return known_branch(self._branches, name)

    def number(self, name: str) -> int:
        """A branch's number: the place of its record in the log."""
        self.branch(name)
        return self._numbers[name]

    def line(self, name: str, at_most: int = sys.maxsize) -> list[tuple[int, int, int]]:
        """The pieces of a branch's line: (number of the branch, first round, last round)."""
        self.branch(name)
        return [(self._numbers[branch], first, last) for branch, first, last in line(self._branches, name, at_most)]

    def _on_line(self, kind: str, name: str) -> list[Record]:
        return [
            record
            for number, first, last in self.line(name)
            for record in sorted(self.book.find(kind, branch=number), key=lambda record: record.round)
            if first <= record.round <= last
        ]

    def _check_next(self, branch: str, round: int) -> None:
        if branch not in self._last:
            done = self.book.find("round", branch=self.number(branch))
            self._last[branch] = max((record.round for record in done), default=self.branch(branch).fork)
        if round != self._last[branch] + 1:
            raise IntegrityError(f"round {round} of {branch!r} does not follow round {self._last[branch]}")

    def begin(self, selection: Selection) -> None:
        """Write down who will be asked."""
        self._check_next(selection.branch, selection.round)
        number = self.number(selection.branch)
        content = {"selected": selection.selected, "cohorts": selection.cohorts}
        with self.book.transaction() as writer:
            writer.add(
                "selection", f"{selection.branch}/{selection.round}", content, branch=number, round=selection.round
            )
            if selection.charged:  # without the branch's number: it outlives the branch
                said = {"branch": selection.branch, "round": selection.round, "charged": dict(selection.charged)}
                writer.add("charge", f"{number}/{selection.round}", said)

    def selection(self, branch: str, round: int) -> Selection | None:
        """What `begin` wrote."""
        for record in self.book.find("selection", branch=self.number(branch), round=round):
            return Selection(
                branch=branch,
                round=round,
                selected=tuple(record.content["selected"]),
                cohorts=tuple(tuple(cohort) for cohort in record.content["cohorts"]),
            )
        return None

    def append(self, outcome: CohortOutcome) -> None:
        """Store a cohort: blobs first, then its records in one transaction."""
        number, place = self.number(outcome.branch), f"{outcome.branch}/{outcome.round}"
        updates = [self._as_stored(update) for update in outcome.updates]
        sealing = [contribution_key(update.client_id, number) for update in updates]  # all of them, before any is made
        names = [self._put_update(update, number, key) for update, key in zip(updates, sealing, strict=True)]
        content = {"refused": dict(outcome.refused), "failed": dict(outcome.failed)}
        with self.book.transaction() as writer:
            writer.add("cohort", f"{place}/{outcome.cohort}", content, branch=number, round=outcome.round)
            for update, name in zip(updates, names, strict=True):
                client = update.client_id
                writer.add(
                    "contribution",
                    f"{place}/{client}",
                    about(update),
                    branch=number,
                    round=outcome.round,
                    client=client,
                    blob=name,
                )
        fresh = self._fresh.setdefault((number, outcome.round), {})
        fresh |= {update.client_id: update for update in updates}

    def _as_stored(self, update: ClientUpdate) -> ClientUpdate:
        metrics = {name: value if math.isfinite(value) else math.nan for name, value in update.metrics.items()}
        update = replace(update, metrics=metrics)
        if self.precision == "float32":
            return update
        import torch

        return replace(update, delta={n: t.to(torch.bfloat16).to(torch.float32) for n, t in update.delta.items()})

    def _put_update(self, update: ClientUpdate, branch: int, name: str) -> str:
        import torch

        kind = torch.float32 if self.precision == "float32" else torch.bfloat16
        tensors = {f"delta|{name}": tensor.to(kind) for name, tensor in update.delta.items()}
        return self.blobs.put(
            seal(
                self.keys.make(name),
                pack(tensors),
                blob_context("contribution", branch, update.round, update.client_id),
            )
        )

    def outcomes(self, branch: str, round: int) -> tuple[CohortOutcome, ...]:
        """The stored cohorts of a round without their updates."""
        found = self.book.find("cohort", branch=self.number(branch), round=round)
        done = [(int(record.key.rpartition("/")[2]), record.content) for record in found]
        return tuple(
            CohortOutcome(branch=branch, round=round, cohort=index, refused=said["refused"], failed=said["failed"])
            for index, said in sorted(done, key=lambda item: item[0])
        )

    def contributions(self, branch: str, round: int) -> tuple[ClientUpdate, ...]:
        """A round's contributions in client-id order."""
        number = next((n for n, first, last in self.line(branch, round) if first <= round <= last), 0)
        fresh = self._fresh.get((number, round), {})
        found = self.book.find("contribution", branch=number, round=round)
        updates = (fresh.get(record.client) or self._read_update(record) for record in found)
        return tuple(sorted(updates, key=lambda update: update.client_id))

    def _read_update(self, record: Record) -> ClientUpdate:
        said = record.content
        parts = _split(unpack(self.open_blob(record)), ("delta",))
        return ClientUpdate(
            client_id=record.client,
            round=record.round,
            delta={name: tensor.float() for name, tensor in parts["delta"].items()},
            num_examples=said["num_examples"],
            steps=said["steps"],
            metrics={name: math.nan if value is None else value for name, value in said["metrics"].items()},
            fingerprint=said["fingerprint"],
            norms=said["norms"],
        )

    def open_blob(self, record: Record) -> bytes:
        """The sealed content of a record, in clear."""
        assert record.blob is not None
        context = blob_context(record.kind, record.branch, record.round, record.client)
        return unseal(self.keys.get(key_name(record)), self.blobs.get(record.blob), context)

    def commit(self, record: RoundRecord, after: RoundState, keep: bool) -> None:
        """End a round; keys/ know of it, so that an older copy of the ledger is refused from now on."""
        self._check_next(record.branch, record.round)
        branch, number = self.branch(record.branch), self.number(record.branch)
        over = [] if branch.history else self.book.find(*_OF_A_ROUND, branch=number)
        late = record.round - self.retention
        if branch.history and self.retention:
            over = [old for old in self.book.find("contribution", branch=number) if old.round <= late]
        del self._last[record.branch]  # if the disk fails now, only the database knows how far the branch is
        with self.book.transaction(anchor=True) as writer:
            writer.add(
                "round", f"{record.branch}/{record.round}", round_content(record), branch=number, round=record.round
            )
            if keep or not branch.history:
                self._add_state(writer, number, after)
            writer.erase([old.seq for old in over], "retention" if branch.history else "no history is kept")
        self._last[record.branch] = record.round
        self._fresh.pop((number, record.round), None)
        self.discard(over)

    def _add_state(self, writer: Writer, number: int, after: RoundState) -> None:
        parts = {
            "adapter": after.state.adapter,
            "residual": after.state.residual,
            "rule": after.rule_state,
        }
        tensors = {f"{part}|{name}": tensor for part, values in parts.items() for name, tensor in values.items()}
        key = self.keys.make(state_key(number, after.round))
        blob = self.blobs.put(seal(key, pack(tensors), blob_context("state", number, after.round, "")))
        gate = after.gate_state
        content = {"gate": gate.norms, "trained": gate.trained, "strikes": gate.strikes}
        writer.add("state", f"{number}/{after.round}", content, branch=number, round=after.round, blob=blob)

    def discard(self, records: Iterable[Record]) -> None:
        """Remove the blobs of records that were erased, and the keys that sealed nothing else."""
        gone = [record for record in records if record.blob is not None]
        for record in gone:
            assert record.blob is not None
            self.blobs.delete(record.blob)
        if gone:
            held = {key_name(record) for record in self.book.find("contribution", "state")}
            for name in sorted({key_name(record) for record in gone} - held):
                self.keys.destroy(name)

    def records(self, branch: str) -> tuple[RoundRecord, ...]:
        """The committed rounds that led to the branch's head."""
        names = {number: name for name, number in self._numbers.items()}
        return tuple(round_record(record, names[record.branch]) for record in self._on_line("round", branch))

    def last_state(self, branch: str, at_most: int) -> RoundState:
        """The last checkpoint at or before a round."""
        for number, first, last in reversed(self.line(branch, at_most)):
            kept = [r for r in self.book.find("state", branch=number) if first <= r.round <= last]
            if kept:
                return self._read_state(max(kept, key=lambda record: record.round))
        raise IntegrityError(f"no state of {branch!r} is kept at or before round {at_most}")

    def _read_state(self, record: Record) -> RoundState:
        parts = _split(unpack(self.open_blob(record)), ("adapter", "residual", "rule"))
        norms = tuple(tuple((client, norm) for client, norm in row) for row in record.content["gate"])
        trained = tuple(record.content.get("trained", ["AB"] * len(norms)))  # older ledgers do not tell
        strikes = tuple((c, count, first, why) for c, count, first, why in record.content.get("strikes", ()))
        return RoundState(
            round=record.round,
            state=GlobalState(adapter=parts["adapter"], residual=parts["residual"]),
            rule_state=parts["rule"],
            gate_state=GateState(norms=norms, trained=trained, strikes=strikes),
        )

    def stored(self, branch: str) -> dict[int, frozenset[str]]:
        """Return the clients whose contribution is stored, by round."""
        by_round = groupby(self._on_line("contribution", branch), key=lambda record: record.round)
        return {round: frozenset(record.client for record in records) for round, records in by_round}

    def restorable(self, branch: str) -> tuple[int, ...]:
        """The rounds whose state is kept or can be aggregated again."""
        stored = self.stored(branch)
        done = [record for record in self.records(branch) if not record.unlearned]
        again = [r.round for r in done if stored.get(r.round, frozenset()) == frozenset(r.accepted)]
        return reachable((record.round for record in self._on_line("state", branch)), again)

    def charged(self) -> tuple[Charged, ...]:
        """Every round that was ever begun with a charge to the privacy budget."""
        return tuple(
            Charged(
                number=int(record.key.partition("/")[0]),
                branch=record.content["branch"],
                round=record.content["round"],
                clients=record.content["charged"],
            )
            for record in self.book.find("charge")
        )

    def noise_secret(self, branch: str) -> bytes:
        """The secret of a branch's privacy noise.

        Raises
        ------
        IntegrityError
            If the branch has rounds and no secret: a new one would make other noise.
        """
        number = self.number(branch)
        if self.book.find("round", branch=number):
            return self.keys.get(noise_key(number))
        return self.keys.make(noise_key(number))

    def drop(self, branch: str) -> None:
        """Remove everything of a branch."""
        number = self.number(branch)
        gone = [*self.book.find("branch", key=branch), *self.book.find(*_OF_A_ROUND, "round", branch=number)]
        with self.book.transaction() as writer:
            writer.erase([record.seq for record in gone], "the branch was dropped")
        self.discard(gone)
        self.keys.destroy(noise_key(number))
        self.reload()

    def close(self) -> None:
        """Leave the ledger to others."""
        self.book.close()


def blob_context(kind: str, branch: int, round: int, client: str) -> str:
    """What a blob is sealed as: it opens as nothing else."""
    return f"{kind} of branch {branch}, round {round}" + (f", {client}" if client else "")


def key_name(record: Record) -> str:
    """The name of the key that a record's blob is sealed with."""
    return key_name_of(record.kind, record.branch, record.round, record.client)


def key_name_of(kind: str, branch: int, round: int, client: str) -> str:
    """The same from the parts of a record."""
    return state_key(branch, round) if kind == "state" else contribution_key(client, branch)


def _split(tensors: Mapping[str, Any], parts: Iterable[str]) -> dict[str, dict[str, Any]]:
    split: dict[str, dict[str, Any]] = {part: {} for part in parts}
    for name, tensor in tensors.items():
        part, _, rest = name.partition("|")
        split[part][rest] = tensor
    return split
