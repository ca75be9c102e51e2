"""Names of files as JSON keeps them: UTF-8, whatever bytes the system's own names are made of."""

import os
from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, PlainSerializer


def as_utf8(name: str | Path) -> str:
    """Return a name, or any text with names in it, as UTF-8 can hold it; a byte that is no UTF-8 is shown by its number."""
    try:
        kept = str(name).encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        # Half of a character of UTF-16, which Windows takes.
        kept = str(name).encode("utf-8", "backslashreplace")
    return kept.decode("utf-8", "backslashreplace")


def is_utf8(name: str | Path) -> bool:
    """Tell whether the bytes of a name are UTF-8, which JSON and other systems can hold."""
    try:
        str(name).encode("utf-8", "surrogateescape").decode("utf-8")
    except UnicodeError:
        return False
    return True


def real_path(path: Path) -> Path:
    """Return an absolute path with its links followed; where they lead in a circle, as far as they can be followed."""
    # Path.resolve raises RuntimeError at a circle.
    return Path(os.path.realpath(path))


def _as_here(name: object) -> object:
    """Return a name that was kept, as this system spells it: under a C locale Python does not decode the bytes of names."""
    if not isinstance(name, str) or os.name == "nt":
        return name
    return os.fsdecode(name.encode("utf-8", "surrogateescape"))


SystemName = Annotated[str, BeforeValidator(_as_here), PlainSerializer(as_utf8, return_type=str, when_used="json")]
"""Name of a file, or of a case whose files have its name."""
SystemPath = Annotated[Path, BeforeValidator(_as_here), PlainSerializer(as_utf8, return_type=str, when_used="json")]
"""Path of a file."""
