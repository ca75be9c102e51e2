"""Files that appear whole or not at all, whatever ends the process that writes them."""

import errno
import os
import platform
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from hashlib import sha256
from itertools import count
from pathlib import Path
from typing import BinaryIO

import psutil

_MARK = ".partial."
_FULL = frozenset((errno.ENOSPC, errno.EDQUOT))
_PROBE_BYTES = 4 * 1024 * 1024
"""A library writes blocks of up to this size; where the last one had no room, this has none either."""
_BLOCK = 4096
_NUMBERS = count()


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Give a hidden file beside ``path`` to write to. It takes the place of ``path`` when the block ends, and goes where the block fails.

    Raises
    ------
    OSError
        The system's own, with the name ``path``; also where the disk is full and the library that wrote says something else.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_of(path)
    try:
        yield partial
        partial.replace(path)
    except BaseException as error:
        refusal = _refusal(path, partial, error)
        # Some of what was raised may hold the file open.
        with suppress(OSError):
            partial.unlink()
        if refusal is not None:
            raise refusal from error
        raise


def write_atomically(path: Path, content: bytes | memoryview) -> None:
    """Write a file so that a reader sees the old content or the new, never a part.

    Raises
    ------
    OSError
        With the name of the file.
    """
    sweep(path.parent, path.name)
    with whole(path) as partial, partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def partial_of(path: Path) -> Path:
    """Return where a file is written until it is whole: beside it, hidden, and nobody else's."""
    # Short, for Windows counts the characters of a path: three digits of the place, two of a number, and the process.
    return path.with_name(f".{_here()}{next(_NUMBERS) % 256:02x}{os.getpid():x}{_MARK}{path.name}")


def becomes(partial: Path) -> str:
    """Return the name that an unfinished file was to have; empty if it is none."""
    return partial.name.partition(_MARK)[2] if partial.name.startswith(".") else ""


def sweep(folder: Path, name: str | None = None) -> None:
    """Remove what killed processes of this machine left unfinished in a folder.

    Parameters
    ----------
    folder : Path
        It need not exist.
    name : str, optional
        Only what was to become a file of this name.
    """
    with suppress(OSError):
        for file in folder.iterdir():
            if becomes(file) and name in (None, becomes(file)) and _is_left(file):
                file.unlink(missing_ok=True)


def take_room(file: BinaryIO, n_bytes: int) -> None:
    """Take the room of a file of zeros on its disk, so that what is written into it later cannot lack it.

    Raises
    ------
    OSError
        If there is none.
    """
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, n_bytes)
        return
    # Elsewhere only what was written is known to have its place. The first block holds the file's head, and so was written.
    file.seek(_BLOCK)
    for at in range(_BLOCK, n_bytes, _PROBE_BYTES):
        file.write(bytes(min(_PROBE_BYTES, n_bytes - at)))


def is_full(error: BaseException) -> bool:
    """Tell whether an error means that a disk, or somebody's share of it, is full: nothing that follows can be written either."""
    return isinstance(error, OSError) and error.errno in _FULL


def said_by_system(error: OSError) -> str:
    """Return what the system refuses, in one line that names the file where it is known."""
    where = f"{error.filename}: " if error.filename is not None else ""
    return f"{where}{error.strerror or error or type(error).__name__}"


def _refusal(path: Path, partial: Path, error: BaseException) -> OSError | None:
    """Return what the system says, in terms of the file that was asked for; None where it is not the system that refuses."""
    if not isinstance(error, Exception):
        return None
    if isinstance(error, OSError) and error.errno is not None:
        named = error.filename in (None, str(partial), partial)
        return type(error)(error.errno, error.strerror, str(path)) if named else None
    probe = partial_of(path)
    try:
        probe.write_bytes(bytes(_PROBE_BYTES))
    except OSError as found:
        return type(found)(found.errno, found.strerror, str(path)) if is_full(found) else None
    finally:
        with suppress(OSError):
            probe.unlink()
    return None


def _is_left(partial: Path) -> bool:
    """Tell whether the process that wrote an unfinished file is gone. Another machine's, or another container's, is not judged."""
    who = re.fullmatch(_here() + "[0-9a-f]{2}([0-9a-f]+)", partial.name[1:].partition(_MARK)[0])
    if who is None:
        return False
    try:
        # A number is given again: a process that began after the last write is another one.
        return bool(psutil.Process(int(who[1], 16)).create_time() > partial.stat().st_mtime + 1)
    except psutil.NoSuchProcess:
        return True
    except (psutil.Error, OSError):
        return False


@cache
def _here() -> str:
    """Name the place in which the numbers of processes hold: a machine, or a container on it."""
    namespace = ""
    with suppress(OSError):
        namespace = str(Path("/proc/self/ns/pid").readlink())
    return sha256(f"{platform.node()} {namespace}".encode()).hexdigest()[:3]
