"""Names of files and folders: which can be kept in a record, which may become a part of a path, and where links lead."""

import os
import re
import sys
from pathlib import Path

from segpipe.errors import SegpipeError

_NO_TEXT = re.compile("[\udc80-\udcff]")
_FOLDER = re.compile(r"\w[\w.-]*")
_VARIANT = re.compile(r"\w[\w.=+~-]*")
_CASE = re.compile(r"[^/\\\x00-\x1f]+")
_LONGEST = 200
"""Bytes of a name; most systems take 255, and an ending comes behind it."""


def _checked(name: str, form: re.Pattern[str], expected: str) -> str:
    if form.fullmatch(name) is None or name in (".", "..") or len(name.encode(errors="replace")) > _LONGEST:
        raise ValueError(f"is no name of a file or folder; expected {expected}, at most {_LONGEST} bytes")
    return name


def folder_name(name: str) -> str:
    """Return a name that a file holds and that becomes a part of a path: of a configuration, a fold, a recipe.

    Raises
    ------
    ValueError
        If it is not letters, digits, ``_``, ``-`` and ``.`` with no ``-`` or ``.`` in front.
    """
    return _checked(name, _FOLDER, "letters, digits, '_', '-' and '.'")


def variant_name(name: str) -> str:
    """As :func:`folder_name`, with what segpipe itself adds for another network (``+``, ``=``) and for a student (``~``)."""
    return _checked(name, _VARIANT, "letters, digits and _ - . = + ~")


def case_name(name: str) -> str:
    """Return the id of a case: what a name of a file may hold, but nothing that separates folders."""
    return _checked(name, _CASE, "any characters but separators and control characters")


def is_case_name(name: str) -> bool:
    """Tell whether a name can be the id of a case."""
    try:
        case_name(name)
    except ValueError:
        return False
    return True


def below(folder: Path, *names: str) -> Path:
    """Return the path of something in a folder, of folders in it, whose names may come from a file.

    The names alone decide: a folder of the workspace may be a link of the user's to another disk.

    Raises
    ------
    SegpipeError
        If a name would lead out of the folder.
    """
    for name in names:
        try:
            case_name(name)
        except ValueError as error:
            raise SegpipeError(f"{folder}: {name[:80]!r} {error}; nothing is written there") from error
    return folder.joinpath(*names)


def real_path(path: Path) -> Path:
    """Return an absolute path with its links followed; where they lead in a circle, as far as they can be followed."""
    # Path.resolve raises RuntimeError at a circle.
    return Path(os.path.realpath(path))


def name_problem(name: str) -> str | None:
    """Return why the name of a file or folder cannot be kept in a record; None where it can.

    Python shows the bytes of a name that are no text in the system's encoding as characters that nothing can write.
    """
    if _NO_TEXT.search(name) is None:
        return None
    encoding = sys.getfilesystemencoding()
    other = "" if encoding == "utf-8" else ", or set PYTHONUTF8=1"
    return f"its name is not {encoding.upper()}; rename it{other}"


def shown_name(name: str) -> str:
    r"""Return a name with each byte that is no UTF-8 by its number: ``\xfc``."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def require_name(path: Path) -> None:
    """Raise unless a path can be kept in a record.

    Raises
    ------
    SegpipeError
        With the path in a form that can be read.
    """
    problem = name_problem(str(path.absolute()))
    if problem is not None:
        raise SegpipeError(f"{shown_name(str(path.absolute()))}: {problem}")
