"""An array and the grid it lies on: the pair that is never separated."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segpipe.geometry import Grid, Orientation


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


def stack_channels(volumes: list[Volume]) -> Volume:
    """Join volumes on one grid along the channel axis, as float32."""
    n_channels = sum(v.array.shape[0] for v in volumes)
    stacked = np.empty((n_channels, *volumes[0].grid.shape), dtype=np.float32)
    np.concatenate([v.array for v in volumes], out=stacked, casting="unsafe")
    return Volume(stacked, volumes[0].grid)
