"""The command line in this process: what a command prints and with which code it ends, without starting an interpreter."""

import contextlib
import io
import sys
from dataclasses import dataclass
from unittest import mock

from segpipe.cli.app import main


@dataclass(frozen=True)
class Ended:
    returncode: int
    stdout: str
    stderr: str


def segpipe(*arguments, cwd=".") -> Ended:
    """Give a command as a user types it."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        contextlib.chdir(cwd),
        mock.patch.object(sys, "argv", ["segpipe", *map(str, arguments)]),
    ):
        try:
            main()
        except SystemExit as ended:
            code = ended.code or 0
    return Ended(code, out.getvalue(), err.getvalue())
