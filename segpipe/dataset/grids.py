"""Do the files of a case lie on one grid, and how is a label brought onto that of its image: never by interpolation.

Grids are compared as they are stored first, then in every order of axes. A rule of nearest axes alone would tear files apart that lie
at 45 degrees.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segpipe.core.geometry import (
    GRID_TOLERANCE_VOXELS,
    Box,
    Grid,
    Orientation,
    Shape,
    box_on_lattice,
    canonical_orientation,
    header_is_lost,
    largest_displacement_mm,
    orientation_onto,
    same_spacing,
)
from segpipe.core.volume import Volume
from segpipe.errors import GeometryMismatchError
from segpipe.io.notes import Note


@dataclass(frozen=True)
class LabelFile:
    """A label file as it is read."""

    volume: Volume
    """(1, Z, Y, X) on its own axes."""
    notes: tuple[Note, ...] = ()
    """What was believed or changed."""
    may_be_part: bool = False
    """Whether its format holds the part around the labels, as that of 3D Slicer does."""
    background: int = 0
    """Value of what is not labelled."""


@dataclass(frozen=True)
class Placed:
    """Labels on the grid of their image."""

    array: NDArray[Any]
    """(Z, Y, X)."""
    notes: tuple[Note, ...] = ()
    """How they were brought there, when the grids did not agree."""


def labels_exactly_on(case_id: str, first_name: str, first: Grid, second_name: str, labels: LabelFile) -> NDArray[Any]:
    """Bring labels onto a grid as ``onto_axes_of`` does, (Z, Y, X), where nobody sees a warning: what is worth one is refused.

    Raises
    ------
    GeometryMismatchError
        If they lie on another grid, or on a part of it without saying that they do.
    """
    placed = onto_axes_of(case_id, first_name, first, second_name, labels)
    doubt = next((note.message for note in placed.notes if note.severity == "warning"), None)
    if doubt is not None:
        raise GeometryMismatchError(
            f"case {case_id!r}: {doubt}; expected the whole grid: save it on that of {first_name}"
        )
    return placed.array


def onto_axes_of(case_id: str, first_name: str, first: Grid, second_name: str, labels: LabelFile) -> Placed:
    """Bring labels onto a grid of the same case, (Z, Y, X), without interpolation.

    Grids agree in some order of their axes; or the labels are a part of the grid's lattice, as 3D Slicer saves them; or the grid states
    no position, has the same shape and voxel sizes, and the labels were made from it.

    Raises
    ------
    GeometryMismatchError
        If none of these holds.
    """
    array, grid = labels.volume.array[0], labels.volume.grid
    orientation = orientation_onto(first, grid)
    if orientation is not None:
        return Placed(orientation.apply(array))
    if not first.placed and same_spacing(first, grid):
        message = (
            f"{first_name} states no position (neither sform nor qform), {second_name} does; shapes and voxel sizes agree: "
            f"the voxels of {second_name} are taken to be those of {first_name}, in the order in which they are stored"
        )
        return Placed(array, (Note("note", message),))
    # Without a stated position on both sides, nothing says where a part would lie.
    found = box_on_lattice(first, grid) if first.placed and grid.placed else None
    whole = None if found is None else _in_whole(first.shape, found[0].apply(array), found[1], labels.background)
    if found is None or whole is None:
        raise _mismatch(case_id, first_name, first, second_name, grid, "or repair its header")
    shape, full = ("x".join(map(str, s)) for s in (found[0].apply(array).shape, first.shape))
    message = (
        f"{second_name} covers {shape} of the {full} voxels of {first_name}, on the same lattice: it is placed at voxel "
        f"{tuple(s.start for s in found[1])} (z, y, x), and the voxels outside it are background"
    )
    return Placed(whole, (Note("note" if labels.may_be_part else "warning", message),))


def _in_whole(shape: Shape, part: NDArray[Any], box: Box, background: int) -> NDArray[Any] | None:
    """Put a part of a lattice into a whole array of background; None where it is no smaller part, or a labelled voxel would be lost."""
    inner = [slice(max(s.start, 0), min(s.stop, n)) for s, n in zip(box, shape, strict=True)]
    if sorted(part.shape) == sorted(shape) or any(s.start >= s.stop for s in inner):
        return None
    whole = np.full(shape, background, dtype=part.dtype)
    whole[tuple(inner)] = part[
        tuple(slice(i.start - s.start, i.stop - s.start) for i, s in zip(inner, box, strict=True))
    ]
    lost = np.count_nonzero(part != background) - np.count_nonzero(whole != background)
    return None if lost else whole


def along_axes_of(grid: Grid, volume: Volume) -> Volume:
    """Reorder and flip a volume's axes to run as those of a grid; tools store one image in several orders of axes."""
    return volume.reoriented(_to_axes_of(grid, volume.grid))


def _to_axes_of(grid: Grid, other: Grid) -> Orientation:
    """Orientation that makes the axes of ``other`` run as those of ``grid``: exactly where there is one, else by the nearest axes."""
    exact = orientation_onto(grid, other)
    return exact or canonical_orientation(other).then(canonical_orientation(grid).inverse())


def require_same_grid(
    case_id: str, first_name: str, first: Grid, second_name: str, second: Grid, otherwise: str = "or repair its header"
) -> None:
    """Raise GeometryMismatchError, with both grids printed, unless they agree in some order of their axes."""
    if orientation_onto(first, second) is None:
        raise _mismatch(case_id, first_name, first, second_name, second, otherwise)


def _mismatch(
    case_id: str, first_name: str, first: Grid, second_name: str, second: Grid, otherwise: str
) -> GeometryMismatchError:
    aligned = second.reoriented(_to_axes_of(first, second))
    apart = (
        ""
        if first.shape != aligned.shape
        else f"; corners lie up to {largest_displacement_mm(first, aligned):.3g} mm apart"
    )
    advice = f"resample one onto the other, {otherwise}"
    for name, other_name, grid, other in (
        (second_name, first_name, second, first),
        (first_name, second_name, first, second),
    ):
        if grid.shape == other.shape and (header_is_lost(grid) or not grid.placed) and other.placed:
            advice = (
                f"the header of {name} seems to be lost (it holds no position of its own): copy that of {other_name} if it was "
                "made from it, do not resample"
            )
            break
    return GeometryMismatchError(
        f"case {case_id!r}: {first_name} is on {first.describe()} but {second_name} is on {second.describe()}{apart}; "
        f"expected the same grid within {GRID_TOLERANCE_VOXELS} voxel: {advice}"
    )
