"""What the numbers of a picture mean: grey values or labels, palettes, few bits, transparency, orientation. Arrays in, arrays out."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segpipe.core.geometry import Grid
from segpipe.errors import UnreadableFileError
from segpipe.io.notes import Note

_TURNED = {
    2: "mirrored left to right",
    3: "turned by 180 degrees",
    4: "mirrored top to bottom",
    5: "mirrored along its diagonal",
    6: "turned by 90 degrees",
    7: "mirrored along its other diagonal",
    8: "turned by 270 degrees",
}


def picture_grid(size: tuple[int, int]) -> Grid:
    """Grid of a picture of (y, x) pixels: 1 mm each, rows from top to bottom, at no stated position."""
    return replace(Grid.of_spacing((1, size[0], size[1]), (1.0, 1.0, 1.0)), placed=False)


def grey_levels(palette: NDArray[np.uint8]) -> NDArray[np.uint8] | None:
    """Grey value of each entry of a palette (N, 3); None where one has a colour."""
    return palette[:, 0] if bool((palette == palette[:, :1]).all()) else None


def spread(values: NDArray[Any], bits: int) -> NDArray[Any]:
    """Spread grey values of 1, 2 or 4 bits over 8, so that white is 255."""
    return values * np.uint8(255 // (2**bits - 1))


def as_declared(readings: Sequence[NDArray[Any]], accepted: tuple[int, ...] | None) -> NDArray[Any]:
    """Return the first reading of a label file whose values are all declared; the first one where none is, or nothing is declared."""
    if accepted is not None and len(readings) > 1:
        for reading in readings:
            if np.isin(np.unique(reading), accepted).all():
                return reading
    return readings[0]


def without_transparency(path: Path, samples: NDArray[Any]) -> NDArray[Any]:
    """Return the samples (C, ...) without the last one.

    Raises
    ------
    UnreadableFileError
        If that one, the transparency, is not opaque everywhere.
    """
    opaque = np.iinfo(samples.dtype).max if samples.dtype.kind in "ui" else 1
    n_clear = int((samples[-1] != opaque).sum())
    if n_clear:
        raise UnreadableFileError(
            f"{path}: {n_clear} pixel(s) are transparent; expected none: save it without transparency"
        )
    return samples[:-1]


def orientation_notes(orientation: Any) -> list[Note]:
    """Say how a picture with a tag of orientation is read."""
    if orientation not in _TURNED:
        return []
    return [
        Note(
            "note",
            f"its orientation tag is {orientation} (shown {_TURNED[orientation]}): pixels are read as they are stored, and the mask gets "
            "the same tag; the label's pixels must be stored in the same order",
        )
    ]
