"""Whether a PNG holds all of its rows, by its own header. Decoders fill rows that are not there with zeros."""

import struct
import zlib
from math import ceil

# Number of samples of a pixel by the colour type in the header.
SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_SIGNATURE_BYTES = 8
_WHOLE = ((0, 0, 1, 1),)
_ADAM7 = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
"""First row and column, and steps, of the passes of an interlaced picture."""


def n_missing_bytes(content: bytes) -> int:
    """Count bytes of pixels that the header of a PNG states and its data lacks.

    Raises
    ------
    zlib.error
        If the data is not compressed as PNG compresses.
    """
    width, height, bits, colour, _, _, interlaced = struct.unpack(">IIBBBBB", content[16:29])
    expected = sum(
        _n_bytes(ceil((height - y) / step_y), ceil((width - x) / step_x), bits * SAMPLES[colour])
        for y, x, step_y, step_x in (_ADAM7 if interlaced else _WHOLE)
    )
    found = len(zlib.decompressobj().decompress(_data(content), expected))
    return expected - found


def _n_bytes(n_rows: int, n_columns: int, bits: int) -> int:
    """Bytes of a pass; each row begins with the number of its filter."""
    return n_rows * (1 + ceil(n_columns * bits / 8)) if n_rows > 0 and n_columns > 0 else 0


def _data(content: bytes) -> bytes:
    """Join the compressed data of a PNG."""
    parts, place = [], _SIGNATURE_BYTES
    while place + 8 <= len(content):
        size, kind = struct.unpack(">I4s", content[place : place + 8])
        if kind == b"IDAT":
            parts.append(content[place + 8 : place + 8 + size])
        place += 12 + size
    return b"".join(parts)
