"""The commands of ``oblivion ledger``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from oblivion.cli_shared import HELP, Json, Run, say
from oblivion.errors import plural

app = typer.Typer(help="Look at, verify or export the ledger of a run.", no_args_is_help=True, context_settings=HELP)


def request_line(asked: dict[str, Any]) -> str:
    """Return what the ledger says of a request, on one line."""
    what = "everything" if asked["samples"] is None else plural(asked["samples"], "sample")
    ground = f" ({asked['ground']})" if asked["ground"] else ""
    due = "" if asked["state"] in ("committed", "refused") else f", due {asked['due_at']}"
    return f"{asked['id']}: {what} of {asked['client']}, {asked['state']}{ground}{due}"


@app.command("show")
def show(run_directory: Run, as_json: Json = False) -> None:
    """Say which branches, requests and exclusions the ledger holds."""
    from oblivion.ledger.overview import overview

    held = overview(run_directory)
    if as_json:
        say(json.dumps(held, indent=1))
        return
    say(f"federation {held['federation']}, head {held['head']}, {held['bytes'] / 2**20:.1f} MiB")
    say(f"log: {held['checkpoint']['size']} entries, root {held['checkpoint']['root']}")
    for branch in held["branches"]:
        rounds = f"rounds {branch['rounds'][0]} to {branch['rounds'][-1]}" if branch["rounds"] else "no rounds"
        start = f" from round {branch['fork']} of {branch['parent']}" if branch["parent"] else ""
        say(f"branch {branch['name']}{start}: {rounds}, {plural(branch['contributions'], 'contribution')}")
    for asked in held["requests"]:
        say(request_line(asked))
    for gone in held["exclusions"]:
        what = "" if gone["samples"] is None else plural(gone["samples"], "sample") + " of "
        say(f"excluded for good: {what}{gone['client']}")


@app.command("verify")
def verify(
    run_directory: Run,
    checkpoint: Annotated[Path | None, typer.Option(help="A checkpoint that was exported before.")] = None,
    as_json: Json = False,
) -> None:
    """Check the log, every record, blob and key, and that what was forgotten is gone (exit code 4 if not)."""
    from oblivion.errors import InputError, IntegrityError
    from oblivion.ledger.checkpoint import Checkpoint
    from oblivion.ledger.verify import verify_ledger
    from oblivion.untrusted import read_json

    seen = None
    if checkpoint is not None:
        value = read_json(checkpoint, "an exported checkpoint")
        try:
            seen = Checkpoint.from_json(value)
        except InputError as error:
            raise InputError(f"{checkpoint}: not an exported checkpoint: {error}") from None
    done = verify_ledger(run_directory, seen)
    counts = {"entries": done.entries, "records": done.records, "blobs": done.blobs}
    found = [{"where": finding.where, "what": finding.what} for finding in done.findings]
    if as_json:
        say(json.dumps({**counts, "findings": found, "unchecked": done.unchecked}, indent=1))
    else:
        say("\n".join(f"{item['where']}: {item['what']}" for item in found) or "everything holds")
        say(", ".join(f"{count} {name}" for name, count in counts.items()))
        for name in done.unchecked:
            say(f"not searched for erased adapters: {name}")
    if found:
        raise typer.Exit(IntegrityError.exit_code)


@app.command("export")
def export(
    run_directory: Run,
    out: Annotated[Path | None, typer.Option(help="Write the log here, one entry a line.")] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="Write the signed checkpoint here.")] = None,
    as_json: Json = True,
) -> None:
    """Write the log and a signed checkpoint, to be kept away from the run; print the checkpoint as JSON."""
    from oblivion.ledger.overview import export

    say(json.dumps(export(run_directory, out, checkpoint)))


@app.command("clock")
def clock(
    run_directory: Run,
    set_back: Annotated[
        bool, typer.Option("--set-back", help="Set the ledger's time back to this machine's clock; the log says so.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Compare the ledger's time with this machine's clock, and set it back where a clock was ahead once."""
    from dataclasses import asdict

    from oblivion.ledger import clock
    from oblivion.ledger.opening import open_run_ledger, read_ledger

    ledger, register = open_run_ledger(run_directory) if set_back else read_ledger(run_directory)
    try:
        told = clock.set_back(ledger.book, register) if set_back else clock.look(ledger.book)
        way_out = ledger.book.ahead()
    finally:
        ledger.close()
    if as_json:
        say(json.dumps(asdict(told)))
        return
    say(f"this machine's clock: {told.machine}, the ledger's last entry: {told.ledger}")
    for was, time in told.repairs:
        say(f"set back from {was} to {time}")
    if told.to_come:
        say(f"{plural(told.to_come, 'entry') if told.to_come == 1 else f'{told.to_come} entries'} dated later than now")
    if way_out:
        say(way_out)


@app.command("enrol")
def enrol(
    run_directory: Run,
    client: Annotated[str, typer.Option(help="The client's id.")],
    key: Annotated[
        Path, typer.Option(help="The client's Ed25519 public key: 32 bytes, either raw, in hex, or as PEM.")
    ],
    as_json: Json = False,
) -> None:
    """Register a client's own public key, so that only the client can ask to be forgotten."""
    from oblivion.ledger.opening import open_run_ledger
    from oblivion.ledger.public_key import read_public_key

    public = read_public_key(key)
    ledger, register = open_run_ledger(run_directory)
    try:
        register.enrol_own(client, public)
    finally:
        ledger.close()
    told = f"{client} is enrolled with its own key; its requests are signed elsewhere from now on"
    say(json.dumps({"enrolled": client}) if as_json else told)
