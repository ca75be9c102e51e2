"""Whether results can be written at a place: tried before the work begins."""

import os
import tempfile
from contextlib import suppress
from pathlib import Path

from segpipe.errors import SegpipeError

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
    there = folder
    while not there.exists() and there != there.parent:
        there = there.parent
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


def require_writable_file(file: Path, what: str = "") -> None:
    """Raise unless a file can be written: as :func:`require_writable` of its folder, and it is no folder itself.

    Raises
    ------
    SegpipeError
        With the place and the reason.
    """
    if file.is_dir():
        raise SegpipeError(f"{' '.join(filter(None, (what, str(file))))}: is a folder; give a file")
    require_writable(file.parent, f"{' '.join(filter(None, (what, str(file))))}: its folder")


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
