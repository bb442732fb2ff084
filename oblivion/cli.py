"""The command line. It alone imports the packages above the library, and it does so inside functions only."""

from __future__ import annotations

import json
import re
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, NoReturn

import typer

from oblivion import cli_ledger, cli_requests
from oblivion.cli_shared import HELP, Engine, Json, Set, finish, quiet_libraries, say
from oblivion.errors import OblivionError

app = typer.Typer(
    name="oblivion",
    help="Federated learning and unlearning of language models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings=HELP,
)
app.add_typer(cli_ledger.app, name="ledger")
for command in cli_requests.COMMANDS:
    app.command()(command)
_INTERRUPTED = 130


def _overrides(assignments: list[str] | None, engine: str | None) -> list[str]:
    return [*(assignments or []), *([f"engine={engine}"] if engine else [])]


@app.command()
def run(
    scenario: Annotated[str | None, typer.Argument()] = None,
    assignments: Set = None,
    out: Annotated[Path | None, typer.Option(help="The run directory; it must not exist.")] = None,
    engine: Engine = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the interrupted run in --out.")] = False,
    dry_run: Annotated[bool, typer.Option(help="Print the resolved config and an estimate, and run nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Learn across clients, forget one, measure it, and write a report.

    SCENARIO is a TOML file, or the name of a built-in scenario, as `oblivion list scenarios` shows them; without it,
    demo is run.
    """
    from oblivion.config import load_config

    quiet_libraries()
    if resume:
        _resume(out, as_json, {"a scenario": scenario, "--set": assignments, "--engine": engine, "--dry-run": dry_run})
        return
    from oblivion.run.scenarios import free_directory, scenario_path

    path = scenario_path("demo" if scenario is None else scenario)
    config = load_config(path, _overrides(assignments, engine))
    if dry_run:
        from server.estimate import estimate
        from server.prepare import prepare

        prepared, data = prepare(config)
        expected = estimate(prepared, data)
        say(
            json.dumps({"config": prepared.to_json(), "estimate": expected}, indent=1)
            if as_json
            else prepared.to_toml()
        )
        if not as_json:
            say("\n".join(f"# {key}: {value}" for key, value in expected.items()))
        return
    from simulations import simulate
    from simulations.display import Display

    with Display() as display:
        result = simulate(config, out or free_directory(path.stem, Path("runs")), sinks=[display])
    finish(result.directory, as_json, {})


def _resume(out: Path | None, as_json: bool, others: dict[str, Any]) -> None:
    from simulations import resume
    from simulations.display import Display

    given = [name for name, value in others.items() if value]
    if out is None or given:
        what = f"takes everything from the run, not {given[0]}" if given else "needs the run directory, with --out"
        raise typer.BadParameter(f"--resume {what}")
    ended: dict[str, Any] = {}
    with Display() as display:
        result = resume(out, sinks=[display, lambda event: ended.update(event)])
    finish(result.directory, as_json, {"finished": "already"} if ended.get("already") else {})


@app.command()
def evaluate(
    target: Annotated[str, typer.Argument()],
    suite: Annotated[
        str, typer.Option(help="The suite of metrics.", show_default="the run's, else that of a new run")
    ] = "",
    data: Annotated[str, typer.Option(help="A folder with the suite's files.")] = "",
    split: Annotated[str, typer.Option(help="The split of that folder.", show_default="the suite's choice")] = "",
    forget: Annotated[str, typer.Option(help="A file with rows to be forgotten, in place of --data.")] = "",
    retain: Annotated[str, typer.Option(help="A file with rows that stay.")] = "",
    holdout: Annotated[str, typer.Option(help="A file with rows that nobody trained on.")] = "",
    reference: Annotated[
        list[str] | None,
        typer.Option(
            help="A model that never saw the data, or its results: an adapter, a model, a run or a JSON file."
        ),
    ] = None,
    base: Annotated[str, typer.Option(help="The base model of an adapter folder.")] = "",
    revision: Annotated[str, typer.Option(help="The pinned revision of a hub id.")] = "",
    template: Annotated[
        str, typer.Option(help="The template that makes text of a question and an answer.", show_default="plain")
    ] = "",
    limit: Annotated[int, typer.Option(min=0, max=10**9, help="The most rows of each group; 0 takes all.")] = 0,
    max_new_tokens: Annotated[int, typer.Option(min=1, max=65_536, help="The most tokens that are generated.")] = 200,
    batch_size: Annotated[int, typer.Option(min=1, max=65_536, help="How many rows are generated together.")] = 32,
    out: Annotated[Path | None, typer.Option(help="Write the results here, in OpenUnlearning's layout.")] = None,
    text: Annotated[bool, typer.Option("--text", help="Keep questions, answers and generations there.")] = False,
    as_json: Json = False,
) -> None:
    """Measure any model, adapter or run.

    TARGET is a run, an adapter folder, a model folder, the hub id of a model, or tiny for the built-in model.
    """
    quiet_libraries()
    from oblivion.errors import ConfigError
    from oblivion.evaluation import evaluate as measure
    from oblivion.metrics.engine.table import table
    from oblivion.metrics.suites import make_suite

    if out is not None and out.is_dir():
        raise ConfigError(f"--out {out} is a folder; give the name of a file")
    result = measure(
        target,
        suite=suite,
        data=data,
        split=split,
        forget=forget,
        retain=retain,
        holdout=holdout,
        reference=reference,
        base=base,
        revision=revision,
        template=template,
        limit=limit,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        text=text,
    )
    written = json.dumps(result, indent=1, allow_nan=False)
    shown = written if as_json else table(result, make_suite(result["manifest"]["suite"]))
    say(shown)  # printed first, so that a full disk loses no result
    if out is not None:
        from oblivion.files import write_atomically

        write_atomically(out, written.encode() + b"\n")


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="One or more runs.")],
    out: Annotated[Path | None, typer.Option(help="The HTML file.")] = None,
    as_json: Json = False,
) -> None:
    """Write the HTML report of one run, or compare several."""
    from oblivion.report import write_report

    written = write_report(runs, out or (runs[0] / "report.html" if len(runs) == 1 else Path("report.html")))
    say(json.dumps({"report": str(written)}) if as_json else f"report: {written}")


@app.command("list")
def list_parts(
    kind: Annotated[str, typer.Argument()],
    as_json: Json = False,
) -> None:
    """List the parts of one kind, and say what each is.

    KIND is aggregators, datasets, learnings, metrics, objectives, partitions, removals, scenarios, schemes, suites,
    tasks or templates.
    """
    from oblivion.errors import ConfigError, nearest
    from oblivion.parts import REGISTRIES
    from oblivion.run.scenarios import describe_scenarios

    tables = {registry.kind + "s": registry.describe for registry in REGISTRIES} | {"scenarios": describe_scenarios}
    if kind not in tables:
        raise ConfigError(f"there are no '{kind}' to list; {nearest(kind, tables)}")
    described = tables[kind]()
    width = max(map(len, described), default=0)
    lines = "\n".join(f"{name:<{width}}  {text}" for name, text in described.items())
    say(json.dumps(described, indent=1) if as_json else lines)


@app.command()
def doctor(as_json: Json = False) -> None:
    """Say which versions, devices, ports, disk and code a run would use, and what is missing."""
    from server.doctor import examine

    facts = examine()
    width = max(map(len, facts))
    say(json.dumps(facts, indent=1) if as_json else "\n".join(f"{k:<{width}}  {v}" for k, v in facts.items()))
    if facts["missing"] != "nothing":
        raise typer.Exit(1)


def _end(error: OblivionError) -> NoReturn:
    from oblivion.untrusted import printable

    sys.stderr.write(f"error: {printable(str(error))}\n")
    raise SystemExit(error.exit_code)


def _at_home(word: str) -> str:
    """Return a word with its ``~`` as a folder: a shell expands it at the start of a word, and not after ``--out=``."""
    return re.sub(r"^(--[\w-]+=)?~(?=/|$)", lambda found: (found[1] or "") + str(Path.home()), word)


@contextmanager
def _like_ctrl_c() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end a command as Ctrl-C does; a signal that nohup or a parent ignores stays ignored."""
    before: dict[int, Any] = {}

    def interrupt(number: int, frame: FrameType | None) -> None:
        for other in before:
            signal.signal(other, signal.SIG_IGN)  # one signal is enough, and another must not disturb the way out
        raise KeyboardInterrupt

    if threading.current_thread() is threading.main_thread():
        for ending in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(ending) != signal.SIG_IGN:
                before[ending] = signal.signal(ending, interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def main() -> None:
    """Run the command line; errors that a user can act on end without a traceback and with their exit code."""
    try:
        with _like_ctrl_c():
            app([_at_home(word) for word in sys.argv[1:]])
    except KeyboardInterrupt:
        _interrupted()
    except SystemExit as ended:
        if ended.code == _INTERRUPTED:  # this is how typer passes on a KeyboardInterrupt
            _interrupted()
        raise
    except OblivionError as error:
        _end(error)
    except OSError as error:
        what = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        _end(OblivionError(what))


def _interrupted() -> NoReturn:
    with suppress(OSError):  # the terminal may be gone
        sys.stderr.write("interrupted\n")
        sys.stderr.flush()
    raise SystemExit(_INTERRUPTED)


if __name__ == "__main__":
    main()
