"""One process at a time in a folder. The system frees a lock when its process ends, however it ends."""

import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from segpipe.core.regular import read_text
from segpipe.errors import LockedError, UnreadableFileError

_MOMENT_S = 1.0
_TELL_AGAIN_S = 600.0


@contextmanager
def locked(folder: Path, *, wait: bool, note: Callable[[str], None] = lambda _: None) -> Iterator[None]:
    """Hold a folder's lock while the context lasts.

    Parameters
    ----------
    folder : Path
        Created when missing; holds the files ``.lock`` and, who has it, ``.lock.holder``.
    wait : bool
        Wait for another process to finish, or raise.
    note : callable
        Told when there is something to wait for, and every ten minutes again.

    Raises
    ------
    LockedError
        If another process has the lock and ``wait`` is false.
    """
    folder.mkdir(parents=True, exist_ok=True)
    holder = folder / ".lock.holder"
    lock = FileLock(folder / ".lock")
    try:
        # Whoever only looks whether it is locked holds it for a moment.
        lock.acquire(timeout=0 if wait else _MOMENT_S)
    except Timeout as error:
        who = _read(holder)
        if not wait:
            raise LockedError(
                f"{folder}: another segpipe works here ({who}); wait until it ends, or use another --work"
            ) from error
        note(f"{folder}: waiting for another segpipe ({who})")
        while not _acquired(lock, _TELL_AGAIN_S):
            note(
                f"{folder}: still waiting for another segpipe ({_read(holder)}); where that one is gone, free its lock on the file server"
            )
    try:
        holder.write_text(
            f"process {os.getpid()} on {socket.gethostname()}, since {time.strftime('%Y-%m-%d %H:%M')}",
            encoding="utf-8",
            newline="\n",
        )
        yield
    finally:
        lock.release()


def _acquired(lock: FileLock, within_s: float) -> bool:
    try:
        lock.acquire(timeout=within_s)
    except Timeout:
        return False
    return True


def is_locked(folder: Path) -> bool:
    """Whether somebody works in a folder at the moment."""
    if not (folder / ".lock").exists():
        return False
    lock = FileLock(folder / ".lock")
    if not _acquired(lock, 0):
        return True
    lock.release()
    return False


def _read(path: Path) -> str:
    try:
        return read_text(path) or "unknown"
    except (OSError, ValueError, UnreadableFileError):
        return "unknown"
