"""The arguments and options that commands share, and how commands print."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

HELP = {"help_option_names": ["-h", "--help"]}
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Run = Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a setting; repeatable.")]
Engine = Annotated[str | None, typer.Option(help="The engine that runs the hosts: ray or inline.")]


def say(text: str) -> None:
    """Print a line of results."""
    from oblivion.untrusted import printable

    sys.stdout.write(printable(text) + "\n")


def quiet_libraries() -> None:
    """Keep libraries that are imported later from printing, sending and starting threads on their own."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")


def finish(directory: Path, as_json: bool, more: dict[str, str]) -> None:
    """Print where the report of a run is, after what else a command has to say."""
    report = directory / "report.html"
    if as_json:
        say(json.dumps({"run": str(directory), "report": str(report), **more}))
    else:
        for key, value in more.items():
            say("finished already: nothing was left to do" if key == "finished" else f"{key}: {value}")
        say(f"report: {report}")
