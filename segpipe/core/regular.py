"""The door to files: regular ones alone are opened, after links were followed, and a text is read up to a limit.

A pipe waits for a writer that may never come, and a device may have no end. Whoever opens one hangs, or fills the memory.
"""

import os
import stat
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path

from segpipe.errors import UnreadableFileError

LONGEST_TEXT = 256 * 1024 * 1024
"""Most bytes of a text that is read whole: a table, JSON, a recipe. The list of 100 000 cases has a tenth of it."""
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def regular(path: Path) -> Path:
    """Return a path where a regular file lies there; libraries that open files get theirs through it.

    Raises
    ------
    FileNotFoundError
        If nothing lies there.
    UnreadableFileError
        If it is a folder, a pipe, a socket or a device.
    """
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode):
        raise UnreadableFileError(_refusal(path, mode))
    return path


def lies(path: Path) -> bool:
    """Tell whether a file is there; what is neither missing nor a file is refused, since nobody put it there to be passed over.

    Raises
    ------
    UnreadableFileError
        If it is a folder, a pipe, a socket or a device.
    """
    # What cannot be looked at is the reader's to refuse; a link that leads nowhere is not there.
    if not path.exists():
        return False
    regular(path)
    return True


def special(path: Path) -> str | None:
    """Return why a path is no place to read from: it is a pipe, a socket or a device. None of a file, a folder, or nothing."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return None
    return None if stat.S_ISREG(mode) or stat.S_ISDIR(mode) else _refusal(path, mode)


def open_regular(path: Path) -> BufferedReader:
    """Open a regular file to read its bytes.

    Raises
    ------
    FileNotFoundError, UnreadableFileError
        As :func:`regular` does.
    """
    return regular(path).open("rb")


def read_bytes(path: Path, most: int = LONGEST_TEXT) -> bytes:
    """Read a regular file whole.

    Parameters
    ----------
    path : Path
    most : int
        Most bytes that it may have.

    Raises
    ------
    FileNotFoundError, UnreadableFileError
        As :func:`regular` does, and if the file is longer.
    """
    with open_regular(path) as file:
        n_bytes = os.fstat(file.fileno()).st_size
        # A file that grows meanwhile, or of the system's own that states no size, is not read without end either.
        content = file.read(most + 1) if n_bytes <= most else b""
    if n_bytes > most or len(content) > most:
        raise UnreadableFileError(
            f"{path}: holds {max(n_bytes, len(content))} bytes, expected at most {most}; is it the right file?"
        )
    return content


def read_text(path: Path, encoding: str = "utf-8", errors: str = "strict") -> str:
    """Read a regular file as text; line ends become newlines, a byte order mark goes.

    Raises
    ------
    FileNotFoundError, UnreadableFileError
        As :func:`read_bytes` does, and if it has another encoding.
    """
    try:
        # Notepad and Excel put a byte order mark in front.
        text = read_bytes(path).decode("utf-8-sig" if encoding == "utf-8" else encoding, errors)
    except UnicodeDecodeError as error:
        raise UnreadableFileError(f"{path}: is not UTF-8 ({error}); save it as UTF-8") from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def files_below(folder: Path, closed: list[OSError] | None = None) -> Iterator[Path]:
    """Yield what lies in and below a folder and is no folder itself: files, pipes, links that lead nowhere.

    Folders that are links are followed. Each folder is looked into once, and none that holds ``folder``: links may lead in a circle.

    Parameters
    ----------
    folder : Path
    closed : list of OSError, optional
        Gets why folders cannot be opened.
    """
    above = Path(os.path.realpath(folder)).parents
    seen = {_identity(place) for place in above}
    pending, links = [folder], list[Path]()
    while pending or links:
        # What a link leads to may lie below the folder itself: it is called by its own name then.
        here = pending.pop() if pending else links.pop()
        try:
            if (identity := _identity(here)) in seen:
                continue
            seen.add(identity)
            entries = sorted(here.iterdir(), reverse=True)
        except OSError as error:
            if closed is not None:
                closed.append(error)
            continue
        folders = [entry for entry in entries if os.path.isdir(entry)]  # noqa: PTH112 - it raises nothing where a folder above is closed
        links += [entry for entry in folders if entry.is_symlink()]
        pending += [entry for entry in folders if not entry.is_symlink()]
        yield from sorted(set(entries) - set(folders))


def _identity(folder: Path) -> tuple[int, int, str]:
    """What tells a folder from all others, whatever path leads to it."""
    found = folder.stat()
    # Some network drives have no numbers.
    return found.st_dev, found.st_ino, "" if found.st_ino else os.path.realpath(folder)


def _refusal(path: Path, mode: int) -> str:
    found = _KINDS.get(stat.S_IFMT(mode), "no regular file")
    return f"{path}: is {found}, expected a file; put the file itself there"
