"""What is odd about a readable file's header, and what was believed. The rules are in docs/conventions.md."""

from itertools import combinations
from typing import Literal, NamedTuple

import numpy as np

from segpipe.core.geometry import Grid

RIGHT_ANGLE_TOLERANCE_DEGREES = 0.1
"""Axes further from a right angle are worth a warning: resampling takes them for rectangular."""

LARGEST_VOXEL_MM = 50.0
"""No scanner's slices are this far apart."""

Severity = Literal["warning", "note"]


class Note(NamedTuple):
    """Something to know about a header; a warning where the file contradicts itself or the pipeline's assumptions."""

    severity: Severity
    message: str


def size_notes(grid: Grid) -> list[Note]:
    """A warning when voxels are larger than anything that is imaged: their unit is then another one."""
    if max(grid.spacing_mm) <= LARGEST_VOXEL_MM:
        return []
    sizes = " x ".join(f"{s:.4g}" for s in grid.spacing_mm)
    return [
        Note(
            "warning",
            f"voxels are {sizes} mm (z, y, x), more than {LARGEST_VOXEL_MM:g} mm: the unit of the file is probably another one "
            "(microns, for instance); state it in the header, or correct the sizes",
        )
    ]


def shear_notes(grid: Grid) -> list[Note]:
    """A warning when the grid's axes are not at right angles."""
    direction = np.asarray(grid.direction)
    angles = {
        f"{'zyx'[i]}{'zyx'[j]}": float(np.degrees(np.arccos(np.clip(direction[:, i] @ direction[:, j], -1, 1))))
        for i, j in combinations(range(3), 2)
    }
    pair, angle = max(angles.items(), key=lambda item: abs(item[1] - 90))
    if abs(angle - 90) <= RIGHT_ANGLE_TOLERANCE_DEGREES:
        return []
    return [
        Note(
            "warning",
            f"axes {pair[0]} and {pair[1]} are {angle:.2f} degrees apart, not 90: the voxels are sheared; "
            "they are processed as if they were rectangular, and results lie on the same sheared grid",
        )
    ]
