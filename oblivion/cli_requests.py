"""The commands that answer requests to forget: one verb, one command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from oblivion.cli_ledger import request_line
from oblivion.cli_shared import Engine, Json, Run, Set, finish, quiet_libraries, say
from oblivion.errors import plural

if TYPE_CHECKING:
    from oblivion.config import RunConfig
    from oblivion.types import ForgetRequest

_OWN_OPTIONS = {"client": "--client", "samples": "--samples", "methods": "--method"}
RequestId = Annotated[str, typer.Argument(metavar="REQUEST", help="The id of a request; see `oblivion requests`.")]


def forget(
    run_directory: Annotated[Path, typer.Argument(metavar="RUN", help="A run that has learned.")],
    client: Annotated[str, typer.Option(help="The client that asks, by id or name.")] = "",
    method: Annotated[str, typer.Option(help="A removal, or a name in forget.methods.")] = "",
    samples: Annotated[
        str, typer.Option(help="A file with one sample id a line, or authors:0.5; without it, the whole client.")
    ] = "",
    request: Annotated[Path | None, typer.Option(help="A request that the client signed (JSON), for --client.")] = None,
    assignments: Set = None,
    engine: Engine = None,
    plan: Annotated[bool, typer.Option("--plan", help="Print the plan and its checklist, and run nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Try a removal on a request to forget; it changes nothing else in the run."""
    if not method or bool(client) == (request is not None):
        raise typer.BadParameter("give --method, and either --client or --request")
    if request is not None and samples:
        raise typer.BadParameter("--samples does not go with --request, which says itself which samples it means")
    quiet_libraries()
    from oblivion.run.directory import RunDirectory
    from simulations.display import Display
    from simulations.simulate import forget_in_run, plan_in_run

    run, config = RunDirectory.open(run_directory)
    signed = _read_request(request) if request else None
    if signed is not None:
        client, samples = signed.client_id, ""
    changed = _forget_config(config, client, samples, method, assignments, engine)
    if plan:
        _show_plan(plan_in_run(run, changed, signed), as_json)
        return
    with Display() as display:
        names = forget_in_run(run, changed, [display], signed)
    finish(run_directory, as_json, {"request": names["request"], "trial": names[method]})


def _read_request(path: Path) -> ForgetRequest:
    from oblivion.ledger.requests import from_json
    from oblivion.untrusted import read_json

    return from_json(read_json(path, "a request as its client signed it"))


def _forget_config(
    config: RunConfig, client: str, samples: str, method: str, assignments: list[str] | None, engine: str | None
) -> RunConfig:
    from oblivion.config import assign, config_from_mapping, parse_assignment

    tree = config.to_json()
    if engine:
        tree["engine"] = engine
    for key, value in map(parse_assignment, assignments or []):
        section, _, rest = key.partition(".")
        if section != "forget" or not rest:
            raise typer.BadParameter(f"--set {key}: after a run only forget.* can be set")
        if rest in _OWN_OPTIONS:
            raise typer.BadParameter(f"--set {key}: give it as {_OWN_OPTIONS[rest]}")
        if rest.startswith("methods.") and not f"{rest}.".startswith(f"methods.{method}."):
            raise typer.BadParameter(f"--set {key}: it is a setting of another method than --method {method}")
        assign(tree, key, value, "--set")
    tables = tree["forget"]["methods"]
    tree["forget"].update(client=client, samples=samples, methods={method: tables.get(method, {})})
    return config_from_mapping(tree, "--set")


def _show_plan(plan: dict[str, Any], as_json: bool) -> None:
    if as_json:
        say(json.dumps(plan, indent=1))
        return
    say(f"{plan['label']}: guarantee {plan['guarantee']}, {plural(plan['client_steps'], 'client-step')}")
    say(f"cost: {plan['fraction']:.2f} of retraining in client-steps (tokens are counted when it is run)")
    say(f"first round with the data: {plan['from_round'] or 'none'}")
    for item in plan["checklist"]:
        say(f"  {item['status']:<12} {item['item']}: {item['why']}")
    for what in plan["invalidates"]:
        say(f"  a commit erases: {what}")


def commit(
    run_directory: Run,
    trial: Annotated[str, typer.Argument(metavar="REQUEST/TRIAL", help="The trial that becomes the run's model.")],
    accept: Annotated[
        bool, typer.Option("--accept-no-guarantee", help="Accept a trial whose guarantee is none, too.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Make a trial the head of the run, erase what it invalidates, and write the evidence.

    `oblivion requests` shows the ids of requests and their trials.
    """
    quiet_libraries()
    from oblivion.run.directory import RunDirectory
    from simulations.display import Display
    from simulations.simulate import commit_in_run

    run, config = RunDirectory.open(run_directory)
    with Display() as display:
        done = commit_in_run(run, config, trial, [display], accept)
    finish(run_directory, as_json, {"committed": trial} | {key: done[key] for key in ("guarantee", "evidence")})


def refuse(
    run_directory: Run,
    request: RequestId,
    ground: Annotated[str, typer.Option(help="Why the request is refused; the ledger keeps the ground.")],
    as_json: Json = False,
) -> None:
    """Refuse an open request to forget.

    REQUEST is its id, as `oblivion requests` shows it.
    """
    from oblivion.run.directory import RunDirectory
    from simulations.simulate import refuse_in_run

    refuse_in_run(*RunDirectory.open(run_directory), request, ground)
    say(json.dumps({"refused": request, "ground": ground}) if as_json else f"{request} refused: {ground}")


def requests(run_directory: Run, as_json: Json = False) -> None:
    """List the requests to forget: what each asks, its state, when its answer is due, and what was tried."""
    from oblivion.ledger.overview import requests

    listed = requests(run_directory)
    if as_json:
        say(json.dumps(listed, indent=1))
        return
    for asked in listed:
        tried = f"; tried: {', '.join(asked['trials'])}" if asked["trials"] else ""
        say(f"{request_line(asked)}{tried}")
    if not listed:
        say("nobody has asked to be forgotten")


def evidence(run_directory: Run, request: RequestId, as_json: Json = False) -> None:
    """Check the evidence of a committed removal with the run's key, and say what it says (exit code 4 if it fails).

    REQUEST is the id of a request, as `oblivion requests` shows it.
    """
    from oblivion.errors import IntegrityError
    from oblivion.ledger.overview import evidence

    path, checks, told, statement = evidence(run_directory, request)
    failed = any(check.status == "FAILED" for check in checks)
    if as_json:
        listed = [{"name": check.name, "status": check.status, "detail": check.detail} for check in checks]
        say(json.dumps({"evidence": str(path), "checks": listed, "statement": statement}, indent=1))
    else:
        say(f"evidence: {path}")
        for line in [f"{check.status:<12} {check.name}: {check.detail}" for check in checks] + told:
            say(line)
    if failed:
        raise typer.Exit(IntegrityError.exit_code)


def ids(
    run_directory: Annotated[Path, typer.Argument(metavar="RUN", help="A run.")],
    client: Annotated[str, typer.Option(help="The client whose rows are shown, by id or name.")],
    as_json: Json = False,
) -> None:
    """Show a client's rows: their number, their id in the data, and the keyed id that requests and the ledger hold."""
    from oblivion.client_names import client_named
    from oblivion.run.directory import RunDirectory
    from server.prepare import client_rows

    rows = client_rows(*RunDirectory.open(run_directory), client_named(client))
    say(json.dumps(rows, indent=1) if as_json else "\n".join(f"{r['row']}\t{r['plain']}\t{r['keyed']}" for r in rows))


COMMANDS = (forget, commit, refuse, requests, evidence, ids)
