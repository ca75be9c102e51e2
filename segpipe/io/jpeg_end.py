"""Whether a JPEG stream has all of its data. Decoders make up what is missing and say nothing.

A decoder passes over bytes between the last pixel and the next marker. Bytes are put there: where pixels change by them, data is missing.
"""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

_START, _END, _SCAN = b"\xff\xd8", 0xD9, 0xDA
_RESTARTS = range(0xD0, 0xD8)
_FRAMES = (0xC0, 0xC1, 0xC2)
"""Frames of Huffman coding with loss: baseline, extended, progressive."""
_PROGRESSIVE = 0xC2
_OTHER_FRAMES = (0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF)
_MARKER = re.compile(rb"\xff+[^\x00\xff]")
# Without a marker, and unlike each other: by chance one may give the pixels that the decoder makes up.
_MORE = (b"\x55" * 32, b"\xfe" * 32)


def is_cut_short(stream: bytes, decode: Callable[[bytes], NDArray[Any]]) -> bool:
    """Tell whether pixels of a JPEG stream depend on data that is not there.

    Streams of arithmetic coding, whose end is open by its definition, and without loss are taken as whole.

    Parameters
    ----------
    stream : bytes
        A JPEG file, or a strip or tile of a TIFF file.
    decode : callable
        Gives the pixels of a stream.
    """
    parts = _parts(stream)
    if parts is None:
        return True
    if any(kind in _OTHER_FRAMES for kind, _ in parts):
        return False
    if _lacks_scans(parts):
        return True
    pixels = decode(stream)
    return any(not np.array_equal(pixels, decode(_with_more(parts, more))) for more in _MORE)


def _parts(stream: bytes) -> list[tuple[int | None, bytes]] | None:
    """Split a stream into segments by their marker, and compressed pixels (None); None where a segment is cut off."""
    parts: list[tuple[int | None, bytes]] = []
    place = 2 if stream.startswith(_START) else 0
    parts.append((0xD8, stream[:place]))
    # A strip of the old kind is compressed pixels alone.
    in_scan = place == 0
    while place < len(stream):
        found = _MARKER.search(stream, place)
        start, end = found.span() if found else (len(stream), len(stream))
        if in_scan:
            parts.append((None, stream[place:start]))
        if found is None:
            break
        kind = stream[end - 1]
        if kind == _END:
            parts.append((kind, stream[start:end]))
            break
        if kind not in _RESTARTS:
            size = int.from_bytes(stream[end : end + 2], "big")
            end += size
            if size < 2 or end > len(stream):
                return None
        parts.append((kind, stream[start:end]))
        place, in_scan = end, kind == _SCAN or kind in _RESTARTS
    return parts


def _with_more(parts: list[tuple[int | None, bytes]], more: bytes) -> bytes:
    """Put bytes behind compressed pixels, in front of the next marker; behind the last ones of a scan one interval more."""
    whole, n_restarts = [], 0
    for (kind, part), (following, _) in zip(parts, [*parts[1:], (None, b"")], strict=True):
        n_restarts = n_restarts + 1 if kind in _RESTARTS else 0 if kind == _SCAN else n_restarts
        whole.append(part)
        if kind is None:
            whole.append(more)
            if following not in _RESTARTS:
                whole += [bytes((0xFF, _RESTARTS[n_restarts % 8])), more]
    return b"".join(whole)


def _lacks_scans(parts: list[tuple[int | None, bytes]]) -> bool:
    """Tell whether a component, or a coefficient of one in its last bits, comes in no scan."""
    frames = [(kind, part) for kind, part in parts if kind in _FRAMES]
    if len(frames) != 1:
        return False
    kind, frame = frames[0]
    body = frame[frame.index(kind) + 3 :]
    components = {body[6 + 3 * n] for n in range(body[5])}
    progressive = kind == _PROGRESSIVE
    missing = {(c, k) for c in components for k in (range(64) if progressive else (0,))}
    for scan in (part[part.index(_SCAN) + 3 :] for kind, part in parts if kind == _SCAN):
        n = scan[0]
        first, last, bits = scan[1 + 2 * n : 4 + 2 * n]
        if not progressive:
            first, last, bits = 0, 0, 0
        if bits & 15 == 0:
            missing -= {(scan[1 + 2 * m], k) for m in range(n) for k in range(first, last + 1)}
    return bool(missing)
