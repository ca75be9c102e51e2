"""Bytes of a file, decompressed where gzip is inside, and read to the end: the checksum of gzip stands behind the last byte.

What is inside decides, not the name: a ``.nii.gz`` that is not compressed and a ``.nii`` that is are both read.
"""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segpipe.core.regular import open_regular, regular
from segpipe.errors import UnreadableFileError
from segpipe.execution.memory import require_room_for

_GZIP = b"\x1f\x8b"
_ZLIB = 15
_MOST_PACKED = 1100
"""Bytes that one byte of a deflate stream can stand for, at most 1032, rounded up."""
_READ, _GIVEN = 1 << 18, 1 << 22
"""Bytes that are read, and most bytes that are given out, at a time."""
_MOST_BEHIND = 1 << 26
"""Most bytes behind a part that are read on for, where they are more than the part itself. Tags of FreeSurfer take some kilobytes."""


@dataclass(frozen=True)
class Taken:
    """A part of a file, and what came behind it."""

    content: NDArray[np.uint8]
    n_behind: int
    """Bytes behind the part."""
    zeros_behind: bool
    """Whether these are padding: all 0."""


def is_gzip(path: Path, at: int = 0) -> bool:
    """Tell whether a file, or its content from a byte on, begins as gzip does."""
    with open_regular(path) as file:
        file.seek(at)
        return file.read(2) == _GZIP


def whole_file(path: Path) -> bytes:
    """Return all bytes of a file that a decoder wants whole.

    Raises
    ------
    NoRoomError
        If they would not fit into the free memory.
    """
    require_room_for(path, regular(path).stat().st_size)
    return regular(path).read_bytes()


def first_bytes(path: Path, n: int) -> bytes:
    """Return up to ``n`` bytes from the start of a file's content.

    Raises
    ------
    UnreadableFileError
        If the compressed stream is damaged there.
    """
    found = b""
    for block in _blocks(path, 0, min(n, _GIVEN)):
        found += block
        if len(found) >= n:
            break
    return found[:n]


def take(path: Path, start: int, n_bytes: int, *, inside: str = "any", at: int = 0) -> Taken:
    """Read a part of a file's content, and the rest of its compressed stream to the end, so that checksums are compared.

    A stream that goes on without end is refused: a small file may unpack to a thousand times its size. What lies behind a part that is
    not compressed has no checksum, and is counted by the file's size.

    Parameters
    ----------
    path : Path
    start : int
        First byte of the part, in the decompressed content.
    n_bytes : int
        Length of the part.
    inside : "any", "zlib"
        Compression: found by the first bytes (gzip or none), or zlib.
    at : int
        Byte of the file at which the content begins.

    Raises
    ------
    UnreadableFileError
        If the content ends too early, goes on for too long, or its checksum does not fit.
    NoRoomError
        If it would not fit into the free memory.
    """
    packed = inside == "zlib" or is_gzip(path, at)
    size = path.stat().st_size - at
    most = size * (_MOST_PACKED if packed else 1)
    if n_bytes > most or start > most:
        # Before memory is taken: a damaged header may state any size.
        raise _too_short(path, f"at most {most if start <= most else 0}", n_bytes)
    # The bytes, and the voxels in the order of their axes.
    require_room_for(path, 2 * n_bytes)
    content = np.empty(n_bytes, dtype=np.uint8)
    filled, behind, zeros = -start, 0, True
    for block in _zlib_blocks(path, at) if inside == "zlib" else _blocks(path, at, _GIVEN):
        piece = block[max(-filled, 0) :] if filled < 0 else block
        filled += len(block) - len(piece)
        if filled < 0 or not piece:
            continue
        wanted = piece[: n_bytes - filled] if filled < n_bytes else b""
        content[filled : filled + len(wanted)] = np.frombuffer(wanted, dtype=np.uint8)
        filled += len(wanted)
        if rest := piece[len(wanted) :]:
            behind += len(rest)
            zeros = zeros and not rest.strip(b"\0")
        if behind > max(n_bytes, _MOST_BEHIND):
            if packed:
                raise UnreadableFileError(
                    f"{path}: its compressed content goes on for more than {max(n_bytes, _MOST_BEHIND)} bytes behind the {n_bytes} of "
                    "its voxels; expected its end there: set the right number of axes and their sizes in the header, or save it again"
                )
            behind = size - start - n_bytes
            break
    if filled < n_bytes:
        raise _too_short(path, str(max(filled, 0)), n_bytes)
    return Taken(content, behind, zeros)


def require_no_second_volume(path: Path, taken: Taken, n_bytes: int) -> None:
    """Refuse voxels behind which as many bytes follow again: the header hides a part of the file.

    Raises
    ------
    UnreadableFileError
        If what follows is a whole multiple of the voxels, and not zeros.
    """
    if taken.n_behind and not taken.zeros_behind and n_bytes and taken.n_behind % n_bytes == 0:
        raise UnreadableFileError(
            f"{path}: the file holds {taken.n_behind // n_bytes + 1} times the voxels that its header states; "
            "expected once: set the right number of axes and their sizes in the header"
        )


def _too_short(path: Path, found: str, expected: int) -> UnreadableFileError:
    return UnreadableFileError(
        f"{path}: the file is truncated: it holds {found} bytes of voxels, by its header expected {expected}; "
        "copy it again from its source"
    )


def _blocks(path: Path, at: int, most: int) -> Iterator[bytes]:
    return _gzip_blocks(path, at, most) if is_gzip(path, at) else _plain_blocks(path, at, most)


def _plain_blocks(path: Path, at: int, most: int) -> Iterator[bytes]:
    with open_regular(path) as file:
        file.seek(at)
        while block := file.read(most):
            yield block


def _gzip_blocks(path: Path, at: int, most: int) -> Iterator[bytes]:
    """Members one after the other; zlib compares the checksum and the length of each. Padding and what is no member end the stream."""
    member, padding = None, 0
    for block in _plain_blocks(path, at, _READ):
        pending = block
        while pending:
            if member is None:
                stripped = pending.lstrip(b"\0")
                padding, pending = padding + len(pending) - len(stripped), stripped
                if padding > _MOST_BEHIND:
                    return
                if not pending:
                    break
                if not pending.startswith(_GZIP[: len(pending)]):
                    return
                member = zlib.decompressobj(16 + _ZLIB)
            yield from (piece for piece in [_inflate(path, member, pending, most)] if piece)
            if member.eof:
                pending, member = member.unused_data, None
            else:
                pending = member.unconsumed_tail
    if member is not None:
        raise UnreadableFileError(
            f"{path}: the file is truncated: its gzip stream ends before its checksum; copy it again from its source"
        )


def _zlib_blocks(path: Path, at: int) -> Iterator[bytes]:
    stream = zlib.decompressobj(_ZLIB)
    for block in _plain_blocks(path, at, _READ):
        pending = block
        while pending and not stream.eof:
            yield from (piece for piece in [_inflate(path, stream, pending, _GIVEN)] if piece)
            pending = stream.unconsumed_tail
        if stream.eof:
            return
    raise UnreadableFileError(
        f"{path}: the file is truncated: its compressed voxels end before their checksum; copy it again from its source"
    )


def _inflate(path: Path, stream: "zlib._Decompress", pending: bytes, most: int) -> bytes:
    try:
        return stream.decompress(pending, most)
    except zlib.error as error:
        found = (
            "its checksum does not fit its content"
            if "check" in str(error)
            else f"its compressed stream is broken ({error})"
        )
        raise UnreadableFileError(f"{path}: the file is damaged: {found}; copy it again from its source") from error
