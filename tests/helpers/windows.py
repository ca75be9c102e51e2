"""Windows imitated on Linux: a file that is open or mapped is neither replaced nor removed."""

import errno
import os
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path

import pytest

HOW = "the system is Windows here: another part of this process has it open"


class OpenFiles:
    """Refuses to remove, rename or replace what this process holds open, while it is switched on.

    It listens to Python's audit events, so that it sees every way to do so.
    """

    def __init__(self) -> None:
        self.on = False
        self.refused: list[str] = []

    def __call__(self, event: str, args: tuple) -> None:
        if not self.on or event not in ("os.remove", "os.rename"):
            return
        paths = [(args[0], args[-1])] if event == "os.remove" else [(args[0], args[2]), (args[1], args[3])]
        for path, folder in paths:
            whole = place_of(path, folder)
            if whole in held():
                self.refused.append(f"{event} {whole}")
                raise PermissionError(errno.EACCES, HOW, whole)


def place_of(path: object, folder: int) -> str:
    """Return the whole path of what an event names, which may be relative to an open folder."""
    given = Path(os.fsdecode(path))
    base = Path(f"/proc/self/fd/{folder}") if isinstance(folder, int) and folder >= 0 else Path()
    whole = base.resolve() / given
    return str(whole.parent.resolve() / whole.name)


def held() -> set[str]:
    """Return the files that this process has open or mapped."""
    found = set()
    for number in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            found.add(str(number.readlink()))
    maps = Path("/proc/self/maps").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    return found | {line.split(maxsplit=5)[5] for line in maps if len(line.split(maxsplit=5)) == 6}


@cache
def open_files() -> OpenFiles:
    """Return the one of this process: what listens to audit events does so to the end."""
    found = OpenFiles()
    sys.addaudithook(found)
    return found


@pytest.fixture
def as_on_windows(monkeypatch):
    """Refuse to remove or replace open files, as Windows does, and let segpipe know on which system it is."""
    monkeypatch.setattr("segpipe.inference.manifest._OPEN_FILES_STAY", True)
    here = open_files()
    here.refused, here.on = [], True
    yield here
    here.on = False
    assert here.refused == []
