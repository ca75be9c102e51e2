"""An array and the grid it lies on: the pair that is never separated."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segpipe.core.geometry import Box, Grid, Orientation

_KEPT_TYPES = (np.dtype(np.uint8), np.dtype(np.int16), np.dtype(np.uint16))


@dataclass(frozen=True)
class Volume:
    """Voxels of shape (C, Z, Y, X) on a grid of shape (Z, Y, X)."""

    array: NDArray[Any]
    grid: Grid

    def __post_init__(self) -> None:
        if self.array.ndim != 4 or self.array.shape[1:] != self.grid.shape:
            raise ValueError(
                f"array of shape {self.array.shape} does not fit a grid of shape {self.grid.shape}; expected (C, Z, Y, X)"
            )

    def reoriented(self, orientation: Orientation) -> "Volume":
        """Return the same voxels with reordered and flipped axes (a view)."""
        return Volume(orientation.apply(self.array), self.grid.reoriented(orientation))

    def cropped(self, box: Box) -> "Volume":
        """Return the voxels of a box (a view)."""
        return Volume(self.array[(slice(None), *box)], self.grid.cropped(box))


def stack_channels(volumes: list[Volume]) -> Volume:
    """Join volumes on one grid along the channel axis: 8- and 16-bit integers as they are when all agree, else float32."""
    kinds = {v.array.dtype.newbyteorder("=") for v in volumes}
    kind = kinds.pop() if len(kinds) == 1 else np.dtype(np.float32)
    kind = kind if kind in _KEPT_TYPES else np.dtype(np.float32)
    if len(volumes) == 1:
        return Volume(volumes[0].array.astype(kind, copy=False), volumes[0].grid)
    stacked = np.empty((sum(v.array.shape[0] for v in volumes), *volumes[0].grid.shape), dtype=kind)
    np.concatenate([v.array for v in volumes], out=stacked, casting="unsafe")
    return Volume(stacked, volumes[0].grid)
