"""Whether results can be written at a place: tried before the work begins."""

import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Literal

from segpipe.core.regular import special
from segpipe.core.system_names import require_name
from segpipe.errors import SegpipeError

Confused = Literal["case", "form"]
"""What a disk may ignore in names: capitals, and the form of letters (an accent within its letter or behind it)."""
_BLOCK = b"\0" * 4096
"""A full quota still takes an empty file."""


def require_writable(folder: Path, what: str = "") -> None:
    """Raise unless files can be written in a folder, or in the nearest folder above it that is there; nothing is left behind.

    Parameters
    ----------
    folder : Path
        It need not exist; it is not created.
    what : str
        The option that names it, for the error.

    Raises
    ------
    SegpipeError
        With the place and the system's reason.
    """
    require_name(folder)
    there = _nearest(folder)
    try:
        handle, name = tempfile.mkstemp(dir=there, prefix=".trial.")
        try:
            os.write(handle, _BLOCK)
            os.fsync(handle)
        finally:
            os.close(handle)
            with suppress(OSError):
                Path(name).unlink()
    except OSError as error:
        raise SegpipeError(unwritable(folder, error, what, there)) from error


def require_writable_file(file: Path, what: str, is_own: Callable[[Path], bool]) -> None:
    """Raise unless a file can be written: as :func:`require_writable` of its folder, and what is there is segpipe's own.

    Parameters
    ----------
    file : Path
    what : str
        The option that names it, for the error.
    is_own : callable
        Whether a file that is there is of the kind that is to be written, so that it may be replaced.

    Raises
    ------
    SegpipeError
        With the place and the reason.
    """
    where = f"{what} {file}"
    if file.is_dir():
        raise SegpipeError(f"{where}: is a folder; give a file")
    if special(file):
        raise SegpipeError(f"{where}: is a pipe, a socket or a device; give a file")
    if file.exists() and not is_own(file):
        raise SegpipeError(
            f"{where}: is there already and is none that this command writes; give another name, or move it away"
        )
    require_writable(file.parent, f"{where}: its folder")


def confused_names(folder: Path) -> set[Confused]:
    """Return what the disk of a folder ignores in names, found by small files that are taken away again.

    Parameters
    ----------
    folder : Path
        It need not exist; the nearest folder above it that is there is tried. It must be writable.
    """
    there = _nearest(folder)
    pairs: dict[Confused, tuple[str, str]] = {"case": ("trial", "TRIAL"), "form": ("\u00fc", "u\u0308")}
    return {kind for kind, (name, other) in pairs.items() if _same_file(there, name, other)}


def _same_file(folder: Path, name: str, other: str) -> bool:
    """Tell whether a new file of one name is found by the other one; false where the system's encoding has not its letters."""
    try:
        handle, made = tempfile.mkstemp(dir=folder, prefix=f".{name}.")
    except UnicodeEncodeError:
        return False
    os.close(handle)
    trial = Path(made)
    try:
        return (folder / trial.name.replace(name, other, 1)).exists()
    finally:
        trial.unlink()


def _nearest(folder: Path) -> Path:
    """Return a folder, or the nearest one above it that is there."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder


def unwritable(place: Path, error: OSError, what: str = "", there: Path | None = None) -> str:
    """Return why a place cannot be written, in a sentence with what to do.

    Parameters
    ----------
    place : Path
    error : OSError
    what : str
        The option that names the place.
    there : Path, optional
        Folder that was tried instead of the place, which does not exist.
    """
    above = "" if there in (None, place) else f" ({there})"
    why = error.strerror or type(error).__name__
    return f"{' '.join(filter(None, (what, str(place))))}: cannot be written{above}: {why}; give another place, or make room"
