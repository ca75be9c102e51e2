"""Palette indices of a BMP picture that Pillow takes for grey values of another number of bits.

Pillow drops a palette of greys that counts up from black, or of black and white. It then reads one byte, or one bit, for each pixel,
whatever number of bits the file states.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segpipe.io.streams import whole_file

_ASSUMED_BITS = {"L": 8, "1": 1}


def indices_with_other_bits(path: Path, picture: Any) -> NDArray[np.uint8] | None:
    """Return the palette indices (Y, X) of an open picture; None where Pillow reads them as they are."""
    if picture.format != "BMP" or picture.mode not in _ASSUMED_BITS or picture.tile[0].codec_name != "raw":
        return None
    content = whole_file(path)
    # Headers of the first kind have 12 bytes, and sizes of 2 bytes.
    place = 24 if content[14] == 12 else 28
    bits = int.from_bytes(content[place : place + 2], "little")
    if bits == _ASSUMED_BITS[picture.mode] or bits not in (1, 2, 4, 8):
        return None
    _, _, first, (_, n_bytes, direction) = picture.tile[0]
    rows = np.frombuffer(content, np.uint8, picture.height * n_bytes, first).reshape(picture.height, n_bytes)
    ones = np.unpackbits(rows, axis=1).reshape(picture.height, -1, bits)
    indices = np.packbits(ones, axis=2)[..., 0] >> (8 - bits)
    return indices[::direction, : picture.width].astype(np.uint8)
