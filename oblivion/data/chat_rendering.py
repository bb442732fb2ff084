"""Render chat formats in a separate process: a format comes with a model's folder, and may loop or grow for ever.

Transformers renders it in a sandbox, which keeps it from the program, not from time and memory. So that is done in a
child, which has a limit of memory, and of processor time for every text. It ends with the process that started it.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from typing import IO, Any

SECONDS = 2
"""The processor time for one text; a real format takes a thousandth of a second."""
MEMORY = 1 << 28
"""The most bytes that rendering may take beyond what the libraries take."""
LONGEST = 1 << 24
"""The most characters of one text."""
_END = "\n"


class RenderError(Exception):
    """The reason why a format gives no text; the message holds nothing of the format or of the turns."""


class Renderer:
    """The child process; it is started at the first text, and again after a format that ended it."""

    def __init__(self) -> None:
        self._child: subprocess.Popen[str] | None = None
        self._pid = 0
        self._lock = threading.Lock()

    def render(self, chat_template: str, turns: list[dict[str, str]], values: dict[str, Any]) -> str:
        """Return the text that a format makes of some turns.

        Parameters
        ----------
        chat_template : str
            The format, in Jinja.
        turns : list of dict
            ``role`` and ``content`` of each.
        values : dict
            What the format may use besides; plain JSON values.

        Raises
        ------
        RenderError
            If it refuses the turns, or needs too much time or memory.
        """
        with self._lock:
            child = self._started()
            assert child.stdin is not None and child.stdout is not None
            try:
                child.stdin.write(json.dumps([chat_template, turns, values]) + _END)
                child.stdin.flush()
                line = child.stdout.readline()
            except BrokenPipeError:
                line = ""
            if not line.endswith(_END):
                self.close()
                raise RenderError(f"takes more than {SECONDS} s or {MEMORY >> 20} MiB for one text")
        said = json.loads(line)
        if "error" in said:
            raise RenderError(said["error"])
        return str(said["text"])

    def _started(self) -> subprocess.Popen[str]:
        if self._child is not None and self._pid != os.getpid():
            self._child = None  # a forked process has only its parent's child
        if self._child is None or self._child.poll() is not None:
            # The child is started by its path, because it needs no package of ours, and with -P, because other packages
            # have modules of the same names as those in this folder.
            self._child = subprocess.Popen(
                [sys.executable, "-P", __file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                encoding="utf-8",
            )
            self._pid = os.getpid()
        return self._child

    def close(self) -> None:
        """End the child."""
        if self._child is not None:
            self._child.kill()
            with contextlib.suppress(BrokenPipeError), self._child:
                pass  # leaving the context closes the pipes and waits
            self._child = None


def _answer(line: str) -> dict[str, str]:
    from jinja2 import TemplateError
    from transformers.utils.chat_template_utils import render_jinja_template

    chat_template, turns, values = json.loads(line)
    try:
        rendered, _ = render_jinja_template(conversations=[turns], chat_template=chat_template, **values)
    except TemplateError:  # its message is the format's, which may repeat a turn
        return {"error": "refuses the turns"}
    except MemoryError:
        return {"error": f"takes more than {MEMORY >> 20} MiB for one text"}
    except Exception as error:  # a format can end in any error, and the child must serve other texts
        return {"error": f"ends in an error ({type(error).__name__})"}
    if len(rendered[0]) > LONGEST:
        return {"error": f"makes a text of more than {LONGEST} characters"}
    try:
        rendered[0].encode()
    except UnicodeEncodeError:  # no tokenizer takes half of a surrogate pair
        return {"error": "makes half of a surrogate pair"}
    return {"text": rendered[0]}


def _limit_memory() -> None:
    import resource

    with contextlib.suppress(OSError, ValueError):  # not every system has this file or this limit
        with open("/proc/self/statm", encoding="ascii") as file:
            used = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))


def _limit_time() -> None:
    import resource

    spent = resource.getrusage(resource.RUSAGE_SELF)
    until = int(spent.ru_utime + spent.ru_stime) + SECONDS + 1
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CPU, (until, resource.RLIM_INFINITY))


def _serve(lines: IO[str], out: IO[str]) -> None:
    """Answer every line of standard input, until its other end is closed."""
    import transformers.utils.chat_template_utils  # before memory is limited  # noqa: F401

    _limit_memory()
    for line in lines:
        _limit_time()
        out.write(json.dumps(_answer(line)) + _END)
        out.flush()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        _serve(sys.stdin, sys.stdout)
