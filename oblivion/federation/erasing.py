"""What a commit erases beside the ledger: files that hold the data, and numbers, events and settings that tell of it.

What goes is listed before the ledger's transaction and stands in the removal's record, so that it can be finished
whatever happens to the files in between. Everything here can be repeated.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from oblivion.errors import InputError, OblivionError
from oblivion.federation.client_store import ClientStore
from oblivion.federation.opened import OpenRun
from oblivion.federation.results import Results
from oblivion.files import erase, rewrite
from oblivion.ledger.book import Record
from oblivion.ledger.erasure import void_requests
from oblivion.ledger.register import RequestStatus
from oblivion.ledger.rounds import Branch
from oblivion.ledger.rounds import line as line_of
from oblivion.run.directory import RunDirectory, to_json
from oblivion.run.events import round_entry
from oblivion.run.manifest import describe_clients
from oblivion.run.records import ModelRecord, RequestRecord, read_record
from oblivion.run_format import CLIENT_STORE, ORIGINAL
from oblivion.untrusted import parse_json, shown

EVENTS = "events.jsonl"
_OWN = ("adapters", "evaluations", "forgets", CLIENT_STORE)
"""The folders that hold what a commit erases."""
_NOT_TEXT = ("time", "event", "branch", "round", "rounds")


def closed_requests(opened: OpenRun, asked: RequestStatus) -> set[str]:
    """The requests that are answered when `asked` is; what a client that leaves altogether still asked goes with it."""
    others = [other for other in opened.register.all_asked() if other.request.id != asked.request.id]
    void = void_requests(asked, others)
    committed = {str(removal.content["request"]) for removal in opened.register.removals()}
    refused = {other.request.id for other in others if not other.open and other not in void}
    return {asked.request.id} | committed | refused


def files_to_erase(opened: OpenRun, asked: RequestStatus, trial: str) -> dict[str, list[str]]:
    """What the run made and a commit erases, by its path in the run directory.

    Returns
    -------
    dict
        ``adapters``: every one that had the data. ``files``: per-row results, and what other requests tried on the old
        head.
    """
    root, closed = opened.run.root, closed_requests(opened, asked)
    known = {a.request.id for a in opened.register.all_asked()} | closed
    known |= {entry.id for entry in Results(opened).record().requests}
    oracles = [f"adapters/oracle*-{request}" for request in sorted(known - {asked.request.id})]
    trials = [f"forgets/{request}/*/plan.json" for request in sorted(known)]
    adapters = [root / ORIGINAL, *(path for pattern in oracles for path in sorted(root.glob(pattern)))]
    folders = [path.parent for pattern in trials for path in sorted(root.glob(pattern))]
    adapters += [f / "adapters" for f in folders if f != root / "forgets" / trial]
    rows = [f"evaluations/{name}/*.json" for name in ("learned", *sorted(known))]
    files = [folder for folder in folders if folder.parent.name not in closed]
    files += [path for pattern in rows for path in sorted(root.glob(pattern))]
    found = {"adapters": adapters, "files": files}
    return {
        kind: [p.relative_to(root).as_posix() for p in paths if os.path.lexists(p)] for kind, paths in found.items()
    }


def private_to_erase(opened: OpenRun, asked: RequestStatus, trial: str, from_round: int, exact: bool) -> list[str]:
    """What clients kept for themselves and a commit erases, by its path in the run directory.

    All of a client that leaves goes. Of the others stays what the rounds of the new head made; what an approximate
    removal left behind from `from_round` on was made with models that had seen the data, so of it only the newest of
    each client stays, and of a client whose samples are forgotten only what the removal itself made.
    """
    root, request = opened.run.root, asked.request
    pieces = {name: (first, last) for name, first, last in line_of(_branches(opened), trial, sys.maxsize)}
    kept = ClientStore(root / CLIENT_STORE).kept()
    on_line = {
        one for one in kept if one.branch in pieces and pieces[one.branch][0] <= one.round <= pieces[one.branch][1]
    }
    newest = {one.client: one for one in sorted(on_line, key=lambda one: one.round)}
    gone = [root / CLIENT_STORE / request.client_id] if request.whole_client else []
    for one in kept:
        tainted = not exact and 0 < from_round <= one.round
        own = one.client == request.client_id and one.branch != trial
        if one.client == request.client_id and request.whole_client:
            continue
        if one not in on_line or (tainted and (own or one != newest[one.client])):
            gone.append(one.path)
    return [path.relative_to(root).as_posix() for path in gone if os.path.lexists(path)]


def _branches(opened: OpenRun) -> dict[str, Branch]:
    return {branch.name: branch for branch in opened.ledger.branches()}


def leads_outside(root: Path, name: str) -> str:
    """Say why a path cannot be a file of the run: its name has another form, or a link on the way leads elsewhere.

    The text is empty for a file of the run. Anybody may have made or edited a run, and what is erased is gone.
    """
    parts = name.split("/")
    if len(parts) < 2 or parts[0] not in _OWN or not {"", ".", ".."}.isdisjoint(parts) or "\0" in name:
        return "it is no file of the run"
    places = (root.joinpath(*parts[:count]) for count in range(1, len(parts)))
    return next((f"{place} is a link, which may lead into another run" for place in places if place.is_symlink()), "")


def check_removable(root: Path, names: Sequence[str]) -> None:
    """Refuse what could not be removed, lies elsewhere, or would leave its content elsewhere, before anything is done.

    Raises
    ------
    OblivionError
        Naming the file, and the way out.
    """
    for name in names:
        if reason := leads_outside(root, name):
            raise OblivionError(
                f"{root}/{shown(name)[1:-1]} cannot be erased: {reason}; put the folder itself there, then commit "
                "again. Nothing was changed"
            )
        for path in _everything(root / name):
            if path.is_symlink() and path.exists():
                raise OblivionError(
                    f"{path} is a link: what it leads to would stay. Put the file or folder itself in its place, or "
                    "remove both; then commit again. Nothing was changed"
                )
            if not path.is_symlink() and (reason := why_it_stays(path)):
                raise OblivionError(
                    f"{path} cannot be removed: {reason}. Make it and its folder writable (chmod u+w, chattr -i), then "
                    "commit again. Nothing was changed"
                )


def _everything(path: Path) -> Iterator[Path]:
    yield path
    if path.is_dir() and not path.is_symlink():
        for place, folders, files in os.walk(path):  # never through links
            yield from (Path(place, name) for name in sorted([*folders, *files]))


def why_it_stays(path: Path) -> str:
    """Why a file or folder could not be replaced or removed, in words; empty where it could, or is not there."""
    for folder in (path.parent, *((path,) if path.is_dir() else ())):
        if folder.exists() and not os.access(folder, os.W_OK | os.X_OK):
            return f"{folder} is not writable"
    try:  # the one harmless change that an immutable file refuses; it keeps its times
        about = path.lstat()
        if about.st_uid == os.geteuid() or os.geteuid() == 0:
            os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns), follow_symlinks=False)
    except FileNotFoundError:
        return ""
    except OSError as error:
        return error.strerror or str(error)
    return ""


def erase_files(opened: OpenRun, removal: Record) -> list[str]:
    """Remove what the removal's record lists; return why something could not be, in words.

    What was made again since (another request's trial on the new head, where this was not finished at once) stays.
    """
    root, problems = opened.run.root, []
    again = {entry.id: entry for entry in Results(opened).record().requests if _open(opened, entry.id)}
    adapters = {model.adapter for entry in again.values() for model in entry.models.values()}
    for name in [*removal.content["erases"]["adapters"], *removal.content["erases"]["files"]]:
        parts = name.split("/")
        # The branch of a request that is answered may be there as well: the head goes on from it.
        trial = parts[0] == "forgets" and parts[1] in again and opened.has("/".join(parts[1:3]))
        if trial or name in adapters or (parts[0] == "evaluations" and parts[1] in again):
            continue
        if reason := leads_outside(root, name):
            problems.append(f"{root}/{shown(name)[1:-1]} is not erased: {reason}")
            continue
        try:
            erase(root / name)
        except OblivionError as error:
            problems.append(str(error))
        if len(parts) > 2:
            with contextlib.suppress(OSError):
                (root / name).parent.rmdir()  # where nothing is left in it
    return problems


def _open(opened: OpenRun, request: str) -> bool:
    return any(asked.open and asked.request.id == request for asked in opened.register.all_asked())


def erase_numbers(opened: OpenRun, removal: Record, asked: RequestStatus) -> None:
    """Take out of metrics, events, settings and manifest what was computed from what is erased, and who is forgotten.

    Of metrics only what the ledger still knows of rounds stays, and what was measured of whole models; see
    docs/ledger.md.
    """
    client = asked.request.client_id if asked.request.whole_client else None
    _metrics(opened, removal, asked)
    for path in sorted(opened.run.root.glob("forgets/*/*/metrics.json")):
        name = path.relative_to(opened.run.root).as_posix()
        if leads_outside(opened.run.root, name):
            continue
        model = read_record(ModelRecord, path, "what the run measured of a trial")
        own = path.parent.parent.name == asked.request.id
        opened.run.write_json(name, _unnumbered(model, None if own else client).to_json())
    _events(opened, client, set(asked.request.sample_ids or ()))
    if client is not None:
        _settings(opened.run, client)
    left = opened.present_data()
    manifest = {**opened.run.read_json("manifest.json", {}), **describe_clients(left)}
    if opened.unfit_rows is not None:
        rows_left = {name: {row.id for row in rows} for name, rows in left.clients.items()}
        unfit = {name: sorted(ids & rows_left.get(name, set())) for name, ids in opened.unfit_rows.items()}
        manifest["unfit_rows"] = {name: ids for name, ids in unfit.items() if ids}
    opened.run.write_json("manifest.json", manifest)


def _metrics(opened: OpenRun, removal: Record, asked: RequestStatus) -> None:
    results, request = Results(opened), asked.request
    record, head = results.record(), f"forgets/{opened.head}/adapters"
    requests, before = record.requests, record.request(request.id)
    if before is None or before.committed is None:  # later, another request may have been answered on the new head
        closed = closed_requests(opened, asked)
        requests = tuple(entry for entry in requests if entry.id in closed)
    entries = tuple(_entry_left(opened, entry, removal, asked, head) for entry in requests)
    record = record.but(head=head, requests=entries, history=())  # what the ledger still has is written into it
    if record.learned is not None:
        client = request.client_id if request.whole_client else None
        record = record.but(learned=_unnumbered(record.learned.but(adapter=None), client))
    results.write(record)


def _entry_left(
    opened: OpenRun, entry: RequestRecord, removal: Record, asked: RequestStatus, head: str
) -> RequestRecord:
    """What is left of the entry of a request when a removal was committed."""
    client = asked.request.client_id if asked.request.whole_client else None
    own, models, erased = entry.id == asked.request.id, entry.models, removal.content["erases"]["adapters"]
    if own:
        said = removal.content
        entry = entry.but(committed=said["trial"], committed_at=said["committed_at"])
    if entry.client == client:
        entry = entry.but(sample_ids=None)  # of an earlier request for some of its samples
    if own or not _open(opened, entry.id):
        models = {name: _unnumbered(model, None if own else client) for name, model in models.items()}
    gone = {name for name, model in models.items() if model.adapter in erased and model.adapter != head}
    return entry.but(models={n: m.but(adapter=None) if n in gone else m for n, m in models.items()})


def _unnumbered(model: ModelRecord, client: str | None) -> ModelRecord:
    """A model's entry without tokens, and without what a client that is forgotten measured of it."""
    measured = {name: said for name, said in model.clients.items() if name.split(" (")[0] != client}
    return model.but(clients=measured, cost=model.cost.but(tokens=None, token_fraction=None))


def _events(opened: OpenRun, client: str | None, samples: set[str]) -> None:
    """Write ``events.jsonl`` again: of rounds what the ledger still knows, and nothing of who or what is forgotten."""
    path, ledger = opened.run.root / EVENTS, opened.ledger
    if not path.is_file():
        return
    records = {(r.branch, r.round): r for b in ledger.branches() for r in ledger.records(b.name)}
    lines = []
    for line in path.read_text("utf-8", errors="replace").splitlines():
        try:
            event = parse_json(line, str(path), "an event")
        except InputError:
            continue  # a line that a crash cut
        if not isinstance(event, dict) or _mentions(event, client, samples):
            continue
        if "branch" in event:
            record = records.get((event["branch"], event.get("round", 0)))
            if record is None:
                continue
            if event.get("event") == "round_committed":
                event |= round_entry(record)
        event.pop("samples", None)  # ids of rows that were measured
        lines.append(json.dumps(json.loads(to_json(event)), ensure_ascii=False) + "\n")
    rewrite(path, "".join(lines).encode())


def _mentions(event: Mapping[str, Any], client: str | None, samples: set[str]) -> bool:
    said = json.dumps({name: value for name, value in event.items() if name not in _NOT_TEXT}, ensure_ascii=False)
    words = [re.escape(client)] if client else []
    words += [re.escape(json.dumps(sample, ensure_ascii=False)[1:-1]) for sample in samples]
    return bool(words) and re.search(rf"(?<![\w-])(?:{'|'.join(words)})(?![\w-])", said) is not None


def _settings(run: RunDirectory, client: str) -> None:
    """Write ``config.toml`` without a client: rounds that stay do not need to know when it joined."""
    _, config = RunDirectory.open(run.root)
    joins = {name: first for name, first in config.federation.joins.items() if name != client}
    # `forget.client` stays: evaluation takes the request's rows from it, and the request is kept as evidence anyway.
    changes = {"federation": config.federation.model_copy(update={"joins": joins})}
    rewrite(run.root / "config.toml", config.model_copy(update=changes).to_toml().encode())
