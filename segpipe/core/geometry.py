"""Where voxels lie in the patient: grids, orientations and their changes. Pure numpy.

A voxel index is ``(z, y, x)``, the array's own order. World positions are ``(x, y, z)`` in RAS+ millimetres: x grows to
the patient's right, y to the front, z to the head. Column ``j`` of ``direction`` is the world direction in which array
axis ``j`` runs, so that ``position = origin + direction @ (index * spacing)``.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import permutations, product
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Shape = tuple[int, int, int]
Spacing = tuple[float, float, float]
Box = tuple[slice, slice, slice]
_T = TypeVar("_T", bound=np.generic)
Floats = NDArray[np.float64]

# World axis (0 = x, 1 = y, 2 = z) along which canonical array axes z, y, x run.
_CANONICAL_WORLD_AXES = (2, 1, 0)


@dataclass(frozen=True)
class Orientation:
    """A reordering and flipping of the three spatial axes.

    Applied to an array, axis ``j`` of the result is axis ``axes[j]`` of the input, reversed where ``flips[j]``.
    """

    axes: tuple[int, int, int] = (0, 1, 2)
    flips: tuple[bool, bool, bool] = (False, False, False)

    def apply(self, array: NDArray[_T]) -> NDArray[_T]:
        """Reorient the last three axes of ``array``, shape (..., Z, Y, X); a view."""
        lead = array.ndim - 3
        moved = array.transpose(*range(lead), *(lead + a for a in self.axes))
        z, y, x = (slice(None, None, -1 if flip else 1) for flip in self.flips)
        return moved[..., z, y, x]

    def then(self, other: "Orientation") -> "Orientation":
        """Return the orientation that does this one, then another."""
        axes = tuple(self.axes[a] for a in other.axes)
        flips = tuple(self.flips[a] != flip for a, flip in zip(other.axes, other.flips, strict=True))
        return Orientation(axes, flips)  # type: ignore[arg-type]

    def inverse(self) -> "Orientation":
        """Return the orientation that undoes this one."""
        axes = tuple(int(a) for a in np.argsort(self.axes))
        return Orientation((axes[0], axes[1], axes[2]), tuple(self.flips[a] for a in axes))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Grid:
    """The sampling grid of a volume: what turns voxel indices into millimetres.

    Attributes
    ----------
    shape : tuple of int, (z, y, x)
    spacing_mm : tuple of float, (z, y, x)
    origin_mm : tuple of float, world (x, y, z) of voxel (0, 0, 0)
    direction : nested tuple, 3x3; column j is the unit world vector of array axis j
    placed : bool; whether the file states where its axes run, or a reader's convention stands in for it
    sized : bool; whether the file states its voxel size, or 1 mm stands in for it
    """

    shape: Shape
    spacing_mm: Spacing
    origin_mm: tuple[float, float, float]
    direction: tuple[tuple[float, float, float], ...]
    placed: bool = True
    sized: bool = True

    @classmethod
    def from_affine(cls, shape: tuple[int, ...], affine: Floats, *, placed: bool = True) -> "Grid":
        """Build a grid from a 4x4 affine that maps an index (z, y, x) to world (x, y, z) in RAS+ mm.

        Raises
        ------
        ValueError
            If the affine is not finite or not invertible.
        """
        columns = np.asarray(affine, dtype=np.float64)[:3, :3]
        spacing = np.linalg.norm(columns, axis=0)
        if not np.isfinite(affine).all() or (spacing <= 0).any():
            raise ValueError(f"voxel-to-world affine is not usable: {np.asarray(affine).tolist()}")
        direction = columns / spacing
        if abs(np.linalg.det(direction)) < 1e-4:
            raise ValueError(f"voxel-to-world affine is singular: {np.asarray(affine).tolist()}")
        rows = tuple(_triple(row) for row in direction)
        return cls(triple(shape), _triple(spacing), _triple(affine[:3, 3]), rows, placed)

    @classmethod
    def of_spacing(cls, shape: Shape, spacing_mm: Spacing) -> "Grid":
        """Build a grid in canonical orientation at the world's origin."""
        return cls(shape, spacing_mm, (0.0, 0.0, 0.0), ((0.0, 0.0, 1.0), (0.0, 1.0, 0.0), (1.0, 0.0, 0.0)))

    @property
    def affine(self) -> Floats:
        """The 4x4 map from an index (z, y, x) to world (x, y, z) in RAS+ mm."""
        matrix = np.eye(4)
        matrix[:3, :3] = np.asarray(self.direction) * np.asarray(self.spacing_mm)
        matrix[:3, 3] = self.origin_mm
        return matrix

    @property
    def voxel_volume_mm3(self) -> float:
        """Volume of one voxel."""
        return float(abs(np.linalg.det(self.affine[:3, :3])))

    @property
    def diagonal_mm(self) -> float:
        """Length of the image's diagonal, outer voxel faces included; the thickness of a single slice does not count."""
        edges = [n * mm for n, mm in zip(self.shape, self.spacing_mm, strict=True)]
        along = [edge for n, edge in zip(self.shape, edges, strict=True) if n > 1]
        return float(np.linalg.norm(along or edges))

    def position_mm(self, index: tuple[float, float, float]) -> Floats:
        """World (x, y, z) of a voxel index (z, y, x)."""
        position: Floats = self.affine[:3, :3] @ np.asarray(index, dtype=np.float64) + np.asarray(self.origin_mm)
        return position

    def corners_mm(self) -> Floats:
        """World positions of the eight corner voxels, shape (8, 3)."""
        last = np.asarray(self.shape) - 1
        return np.stack([self.position_mm(tuple(last * np.asarray(bits))) for bits in np.ndindex(2, 2, 2)])

    def reoriented(self, orientation: Orientation) -> "Grid":
        """Return the grid of an array to which ``orientation`` was applied; voxels keep their place in the world."""
        start = [0.0, 0.0, 0.0]
        for new_axis, old_axis in enumerate(orientation.axes):
            if orientation.flips[new_axis]:
                start[old_axis] = self.shape[old_axis] - 1
        signs = np.where(orientation.flips, -1.0, 1.0)
        columns = self.affine[:3, list(orientation.axes)] * signs
        affine = np.eye(4)
        affine[:3, :3] = columns
        affine[:3, 3] = self.position_mm((start[0], start[1], start[2]))
        turned = Grid.from_affine(tuple(self.shape[a] for a in orientation.axes), affine)
        return replace(turned, placed=self.placed, sized=self.sized)

    def cropped(self, box: Box) -> "Grid":
        """Return the grid of a box (z, y, x) of an array; voxels keep their place in the world."""
        z, y, x = (s.start for s in box)
        affine = self.affine
        affine[:3, 3] = self.position_mm((z, y, x))
        part = Grid.from_affine(tuple(s.stop - s.start for s in box), affine)
        return replace(part, placed=self.placed, sized=self.sized)

    def describe(self) -> str:
        """Shape, spacing, origin and axis codes in one line, for messages."""
        spacing = " x ".join(f"{s:.4g}" for s in self.spacing_mm)
        origin = ", ".join(f"{o:.5g}" for o in self.origin_mm)
        assumed = "" if self.placed else " (assumed: its header states no position)"
        return f"shape {'x'.join(map(str, self.shape))}, spacing {spacing} mm (z, y, x), origin ({origin}), axes {self.axis_codes}{assumed}"

    @property
    def axis_codes(self) -> str:
        """Anatomical directions in which axes z, y, x run, such as ``SAR``."""
        codes = (("L", "R"), ("P", "A"), ("I", "S"))
        matrix = np.asarray(self.direction)
        worlds = _nearest_world_axes(matrix)
        return "".join(codes[w][int(matrix[w, axis] > 0)] for axis, w in enumerate(worlds))


def bounding_box(mask: NDArray[np.bool_]) -> Box:
    """Smallest box that holds every true voxel of (Z, Y, X).

    Raises
    ------
    ValueError
        If no voxel is true.
    """
    slices: list[slice] = []
    for axis in range(3):
        # What is known of the earlier axes makes the later ones cheaper.
        inner = mask[tuple(slices)]
        hits = np.flatnonzero(inner.any(axis=tuple(a for a in range(3) if a != axis)))
        if not hits.size:
            raise ValueError("the mask is empty")
        slices.append(slice(int(hits[0]), int(hits[-1]) + 1))
    return slices[0], slices[1], slices[2]


def canonical_orientation(grid: Grid) -> Orientation:
    """Orientation that brings axes (z, y, x) nearest to (superior, anterior, right).

    Source: the nearest-axis rule of nibabel's ``as_closest_canonical``, as the assignment of array to world axes with
    the largest total cosine.
    """
    matrix = np.asarray(grid.direction)
    worlds = _nearest_world_axes(matrix)
    axes = tuple(worlds.index(w) for w in _CANONICAL_WORLD_AXES)
    flips = tuple(bool(matrix[w, axis] < 0) for w, axis in zip(_CANONICAL_WORLD_AXES, axes, strict=True))
    return Orientation(axes, flips)  # type: ignore[arg-type]


def largest_displacement_mm(first: Grid, second: Grid) -> float:
    """Largest distance in mm between corresponding corner voxels of two grids of one shape."""
    return float(np.linalg.norm(first.corners_mm() - second.corners_mm(), axis=1).max())


# Headers store positions in float32 and tools round them differently; a tenth of a voxel moves no label.
GRID_TOLERANCE_VOXELS = 0.1


def same_grid(first: Grid, second: Grid) -> bool:
    """Tell whether two grids agree within ``GRID_TOLERANCE_VOXELS`` of the smallest voxel edge.

    A second grid whose file states no voxel size agrees with a first one of its shape and directions that states no position: it has
    that one's voxel size.
    """
    if first.shape != second.shape:
        return False
    if (
        not second.sized
        and not first.placed
        and np.allclose(first.direction, second.direction)
        and not any(second.origin_mm)
    ):
        return True
    return largest_displacement_mm(first, second) <= GRID_TOLERANCE_VOXELS * min(first.spacing_mm)


SPACING_TOLERANCE = 1e-3
"""Relative difference of voxel sizes that rounding makes."""


def same_spacing(first: Grid, second: Grid) -> bool:
    """Tell whether two grids have the same shape and, but for rounding, the same voxel sizes, axis by axis."""
    ratios = np.asarray(first.spacing_mm) / np.asarray(second.spacing_mm)
    return first.shape == second.shape and bool((np.abs(ratios - 1) <= SPACING_TOLERANCE).all())


def header_is_lost(grid: Grid) -> bool:
    """Tell whether a grid is what programs write when they know none: voxels of 1 mm from the origin on, along the world's axes."""
    direction = np.abs(np.asarray(grid.direction))
    along_axes = bool(np.isin(direction, (0.0, 1.0)).all())
    return along_axes and set(grid.spacing_mm) == {1.0} and set(grid.origin_mm) == {0.0}


def every_orientation() -> Iterator[Orientation]:
    """Yield the 48 orders and directions of three axes; the one that changes nothing comes first."""
    for axes in permutations(range(3)):
        for flips in product((False, True), repeat=3):
            yield Orientation(axes, flips)  # type: ignore[arg-type]


def orientation_onto(grid: Grid, other: Grid) -> Orientation | None:
    """Return the orientation under which the voxels of ``other`` lie on those of ``grid``; None if there is none.

    The axes as they are stored come first: a rule of nearest axes puts two copies of one oblique grid into different orders, when one
    of them is rounded.
    """
    for orientation in every_orientation():
        # The shape decides most of them, for nothing.
        if tuple(other.shape[a] for a in orientation.axes) == grid.shape and same_grid(
            grid, other.reoriented(orientation)
        ):
            return orientation
    return None


def box_on_lattice(grid: Grid, other: Grid) -> tuple[Orientation, Box] | None:
    """Return where ``other`` lies, if it is a part of the endless lattice of ``grid``: its orientation and its box.

    The box counts in voxels of ``grid``, and may reach beyond it.
    """
    for orientation in every_orientation():
        turned = other.reoriented(orientation)
        start = np.linalg.solve(grid.affine, np.array([*turned.origin_mm, 1.0]))[:3]
        z, y, x = (slice(int(s), int(s) + n) for s, n in zip(np.rint(start), turned.shape, strict=True))
        if same_grid(grid.cropped((z, y, x)), turned):
            return orientation, (z, y, x)
    return None


def resampled_shape(shape: tuple[int, ...], spacing_mm: tuple[float, ...], new_spacing_mm: tuple[float, ...]) -> Shape:
    """Shape after resampling to a new spacing, each axis rounded half to even (nnU-Net's rule), at least one voxel."""
    return triple([max(round(s / t * n), 1) for n, s, t in zip(shape, spacing_mm, new_spacing_mm, strict=True)])


def _nearest_world_axes(direction: Floats) -> list[int]:
    """World axis assigned to each array axis, so that the summed absolute cosine is largest."""
    return list(max(permutations(range(3)), key=lambda p: sum(abs(direction[w, axis]) for axis, w in enumerate(p))))


def _triple(values: Floats) -> tuple[float, float, float]:
    z, y, x = (float(v) for v in values)
    return z, y, x


def triple(values: Sequence[int]) -> Shape:
    """Three whole numbers as a shape, whatever they came as."""
    z, y, x = (int(v) for v in values)
    return z, y, x
