"""What a unit test may not do: start a process, train, write outside the temporary folder, connect to anything."""

import os
import sys
import tempfile
from pathlib import Path

import matplotlib.font_manager  # noqa: F401 - it writes its cache when it is first imported
import pytest

from segpipe.training.loop import Trainer

ROOT = Path(__file__).parents[2]
STARTS = (
    "subprocess.Popen",
    "os.fork",
    "os.forkpty",
    "os.posix_spawn",
    "os.exec",
    "os.spawn",
    "os.system",
    "pty.spawn",
)
CHANGES = {
    "os.mkdir": (0,), "os.rename": (0, 1), "os.link": (1,), "os.symlink": (1,), "os.remove": (0,), "os.rmdir": (0,),
    "os.truncate": (0,), "shutil.rmtree": (0,), "shutil.copyfile": (1,), "shutil.move": (0, 1),
}  # fmt: skip
"""Events of Python's audit hooks that change files, and which of their arguments are the paths."""
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def inside(path: str, folders: tuple[Path, ...]) -> bool:
    return any(where.is_relative_to(f) for where in (Path(path).absolute(), Path(path).resolve()) for f in folders)


class Guard:
    """Refuses what breaks the promise, and remembers it, for code that swallows exceptions."""

    def __init__(self) -> None:
        self.found: list[str] | None = None
        """None while no test runs."""
        self.free = tuple(Path(p).resolve() for p in (tempfile.gettempdir(), "/var/tmp", "/dev", "/proc"))
        self.own: tuple[Path, ...] = ()
        """The temporary folder of this run."""

    def __call__(self, event: str, args: tuple) -> None:
        if self.found is None:
            return
        if event in STARTS:
            self.refuse(f"it starts a process ({event} {args})")
        elif event == "socket.connect":
            self.refuse(f"it opens a connection ({args[1]})")
        elif event == "open":
            path, mode, flags = args
            if (isinstance(mode, str) and set(mode) & set("wax+")) or (flags or 0) & WRITING:
                self.written(path, event)
        elif event in CHANGES:
            for number in CHANGES[event]:
                self.written(args[number], event)

    def written(self, path, event: str) -> None:
        if not isinstance(path, str | bytes | os.PathLike):
            return
        text = os.fsdecode(path)
        # A name alone is relative to an open folder: part of a removal that began with the folder's own path.
        part = event in ("os.remove", "os.rmdir") and os.sep not in text
        kept = "__pycache__" in text or ".hypothesis" in text
        if part or kept or inside(text, self.own) or (inside(text, self.free) and not inside(text, (ROOT,))):
            return
        self.refuse(f"it writes outside the temporary folder ({event}: {text})")

    def refuse(self, what: str) -> None:
        assert self.found is not None
        self.found.append(what)
        raise AssertionError(f"a unit test may not do this: {what}; see docs/tests.md")


GUARD = Guard()
sys.addaudithook(GUARD)


@pytest.fixture(autouse=True)
def _pure(monkeypatch, tmp_path_factory):
    """Watch the test; fail it for what it did, even where nobody noticed the exception."""

    def starts(*_args, **_options):
        GUARD.refuse("it starts a process (fork_exec)")

    def trains(*_args, **_options):
        GUARD.refuse("it trains")

    # Compiled networks are kept in the home.
    monkeypatch.setenv("HOME", str(tmp_path_factory.getbasetemp()))
    monkeypatch.setattr("_posixsubprocess.fork_exec", starts)
    monkeypatch.setattr(Trainer, "run", trains)
    GUARD.own, GUARD.found = (tmp_path_factory.getbasetemp().resolve(),), []
    yield
    found, GUARD.found = GUARD.found, None
    assert not found, found
