"""The command line as a function: what every test that gives commands shares."""

from __future__ import annotations

import contextlib
import io
import sys
from unittest.mock import patch

from oblivion import cli


def oblivion(*arguments: object) -> tuple[int, str, str]:
    """Exit code, standard output, standard error; an exception that the command line lets through fails the test."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with (
        patch.object(sys, "argv", ["oblivion", *map(str, arguments)]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            cli.main()
        except SystemExit as end:
            code = int(end.code or 0)
    return code, out.getvalue(), err.getvalue()
