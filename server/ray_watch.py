"""End what is left of Ray when a run has ended, however it ended: a process of its own, which outlives the run.

It waits until its standard input closes: the run closes it, or the run is gone, even by SIGKILL. Then every process
that belongs to the run's session folder is killed, by its number, and the folder is removed. It is started as a file
with ``python -I -S`` and needs the standard library alone, so that it costs some milliseconds.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

_TICK = 0.02
_QUIET_PASSES = 3
"""The number of looks in a row that must find nothing, because Ray may be about to start a further process."""
_LONGEST = 10.0
"""The most seconds: a process in an uninterruptible wait cannot be killed, and must not hold up the run's end."""


class Watch:
    """The watching process, seen from the run.

    Parameters
    ----------
    folder : Path
        The session folder, private to this run.
    handle : int
        The open folder, which the run has locked; the lock lasts as long as the watching process does.
    """

    def __init__(self, folder: Path, handle: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, str(folder), str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C in a terminal, and the terminal's end, must not reach it
            cwd="/",
            pass_fds=(handle,),
        )

    @property
    def pid(self) -> int:
        """The number of the watching process."""
        return self._process.pid

    def finish(self) -> None:
        """Have everything ended, and wait for it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(2 * _LONGEST)


def processes_of(folder: str, run: int) -> list[int]:
    """Return this user's processes that have the folder as an option or write to a file below it, without the run.

    Ray's daemons have it in their options; its workers rename themselves, and write their logs there. A process that
    only reads a log is left alone.
    """
    user, spared = os.getuid(), (os.getpid(), run)
    numbers = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    return [number for number in numbers if number not in spared and _belongs(Path("/proc", str(number)), folder, user)]


def _belongs(process: Path, folder: str, user: int) -> bool:
    below = os.fsencode(f"{folder}/")
    try:
        if process.stat().st_uid != user:
            return False
        if b"=" + below in (process / "cmdline").read_bytes():
            return True
        for opened in (process / "fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                if opened.lstat().st_mode & stat.S_IWUSR and os.fsencode(os.readlink(opened)).startswith(below):
                    return True
    except OSError:  # it has ended, or is nobody's to look at
        pass
    return False


def end(folder: str, run: int) -> None:
    """Kill the processes of a session folder, and remove it."""
    limit = time.monotonic() + _LONGEST
    quiet = 0
    while quiet < _QUIET_PASSES and time.monotonic() < limit:
        found = processes_of(folder, run)
        quiet = 0 if found else quiet + 1
        for number in found:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(number, signal.SIGKILL)
        time.sleep(_TICK)
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    for _signal in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(_signal, signal.SIG_IGN)
    sys.stdin.buffer.read()
    end(sys.argv[1], int(sys.argv[2]))
