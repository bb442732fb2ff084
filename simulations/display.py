"""Show a person how a run goes on: with a live bar in a terminal, with plain lines elsewhere."""

from __future__ import annotations

import math
import sys
from types import TracebackType
from typing import Any

from oblivion.errors import plural
from oblivion.run.events import Event
from oblivion.untrusted import printable


class Display:
    """Shows events on standard error; a context manager and a sink."""

    def __init__(self) -> None:
        self._progress: Any = None
        self._task: Any = None
        self._branch = ""

    def __enter__(self) -> Display:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[detail]}"),
                TimeRemainingColumn(),
                console=Console(stderr=True),
            )
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.stop()

    def __call__(self, event: Event) -> None:
        """Show one event."""
        name = event["event"]
        if name == "phase":
            self._line(str(event["text"]))
        elif name == "warning":
            self._line(f"warning: {event['text']}")
        elif name == "update.refused":
            self._line(f"warning: round {event['round']}: {event['client']} refused: {event['reason']}")
        elif name == "client.failed":
            self._line(f"warning: round {event['round']}: {event['client']} failed: {event['reason']}")
        elif name == "round_started":
            self._started(event)
        elif name == "round_committed":
            self._committed(event)

    def _line(self, text: str) -> None:
        text = printable(text)
        if self._progress is not None:
            self._progress.console.print(text, markup=False, highlight=False)
        else:
            sys.stderr.write(text + "\n")
            sys.stderr.flush()

    def _started(self, event: Event) -> None:
        if self._progress is None:
            return
        label = event["branch"].split("/")[-1]
        if event["branch"] != self._branch:
            self._branch = event["branch"]
            if self._task is not None:
                self._progress.remove_task(self._task)
            done = event["round"] - 1
            self._task = self._progress.add_task(label, total=event["rounds"], completed=done, detail="")
        self._progress.update(self._task, total=event["rounds"], detail=plural(event["clients"], "client"))

    def _committed(self, event: Event) -> None:
        loss = event["loss"]
        told = loss is not None and math.isfinite(loss)  # with privacy there is no loss
        detail = plural(event["clients"], "client") + (f", loss {loss:.3f}" if told else "")
        if self._progress is not None:
            self._progress.update(self._task, completed=event["round"], detail=detail)
        else:
            label = event["branch"].split("/")[-1]
            self._line(f"  {label}: round {event['round']}/{event['rounds']}, {detail}, {event['seconds']:.1f} s")
