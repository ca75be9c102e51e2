"""What is odd about a readable file's header, and what was believed. The rules are in docs/conventions.md."""

from itertools import combinations
from typing import Literal, NamedTuple

import numpy as np

from segpipe.core.geometry import Grid

RIGHT_ANGLE_TOLERANCE_DEGREES = 0.1
"""Axes further from a right angle are worth a warning: resampling takes them for rectangular."""


class Note(NamedTuple):
    """Something to know about a header; a warning where the file contradicts itself or the pipeline's assumptions."""

    severity: Literal["warning", "note"]
    message: str


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
