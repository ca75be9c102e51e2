"""Names of files as the system spells them: which can be kept in a record, and where their links lead."""

import os
import re
import sys
from pathlib import Path

from segpipe.errors import SegpipeError

_NO_TEXT = re.compile("[\udc80-\udcff]")


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
