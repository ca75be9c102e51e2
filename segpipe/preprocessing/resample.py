"""Resampling as linear algebra: one small matrix an axis. Pure.

Interpolation that treats axes separately is a matrix product along each axis, whatever its order: the matrix is what the
interpolator does to the unit vectors. Each output row looks at a short run of the input only, so the product is done for
blocks of rows with the run of columns they see, by BLAS in float32, and along the first axis in slabs, so that besides
input and output a few planes are held.

Cubic equals ``skimage.transform.resize(order=3, mode="edge", anti_aliasing=False)``, which nnU-Net uses.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import find_objects, zoom

ANISOTROPY_THRESHOLD = 3.0
"""Ratio of spacings over which the coarse axis is interpolated apart, by nearest neighbour (nnU-Net's rule)."""

# Rows of one product: fewer waste calls, more waste multiplications by 0 (measured in tests/bench/bench_resample.py).
_BLOCK_ROWS = 32
# The spline's prefilter reaches over the whole axis, falling by 0.27 a voxel; less than this of the range is cut off.
_NEGLIGIBLE = 1e-7
# Shares of labels are sums of products of fractions: float32 leaves less than this between equal ones.
_TIE = 1e-5

Floats = NDArray[np.float32]
Shape = tuple[int, ...]
Method = Literal["cubic", "linear", "nearest", "area"]


@dataclass(frozen=True)
class Block:
    """Output rows of an axis, the input columns they see, and the matrix between them."""

    rows: slice
    columns: slice
    matrix: Floats


def separate_axis(spacing_mm: tuple[float, ...], new_spacing_mm: tuple[float, ...]) -> int | None:
    """Axis that is interpolated apart, or None.

    The coarsest axis of the old spacing if it is anisotropic, else of the new one; none where two axes are equally coarse.
    """
    for spacing in (spacing_mm, new_spacing_mm):
        if max(spacing) / min(spacing) > ANISOTROPY_THRESHOLD:
            coarsest = [a for a in range(3) if spacing[a] == max(spacing)]
            return coarsest[0] if len(coarsest) == 1 else None
    return None


def resample_image(image: NDArray[Any], shape: Shape, *, apart: int | None) -> Floats:
    """Resample channels (C, Z, Y, X) to a spatial shape with cubic splines; values stay in the range of the input.

    Parameters
    ----------
    image : ndarray of any real type, shape (C, Z, Y, X)
    shape : tuple of int
        New (Z, Y, X).
    apart : int or None
        Axis taken by nearest neighbour, the others then being interpolated slice by slice.

    Returns
    -------
    ndarray of float32, shape (C, *shape)
    """
    if image.shape[1:] == shape:
        return image.astype(np.float32, copy=False)
    resampled = np.empty((image.shape[0], *shape), dtype=np.float32)
    axes = None if apart is None else tuple(a for a in range(3) if a != apart)
    for channel, array in enumerate(image):
        interpolate(array, shape, _methods("cubic", apart), out=resampled[channel])
        # The interpolator clips to the range of what it was given: a volume, or a slice.
        low, high = array.min(axis=axes, keepdims=True), array.max(axis=axes, keepdims=True)
        if apart is not None:
            chosen = nearest_indices(array.shape[apart], shape[apart])
            low, high = low.take(chosen, axis=apart), high.take(chosen, axis=apart)
        np.clip(resampled[channel], low, high, out=resampled[channel])
    return resampled


def resample_labels(labels: NDArray[np.int16], shape: Shape, *, apart: int | None) -> NDArray[np.int16]:
    """Resample labels (Z, Y, X): each label's indicator linearly, the largest wins, ties go to the nearest neighbour's label."""
    if labels.shape == shape:
        return labels
    methods = _methods("linear", apart)
    z, y, x = (axis_matrix(n, m, method) for n, m, method in zip(labels.shape, shape, methods, strict=True))
    indices = [nearest_indices(n, m) for n, m in zip(labels.shape, shape, strict=True)]
    chosen = np.empty(shape, dtype=np.int16)
    for block in blocks_of(labels.shape[0], shape[0], methods[0]):
        slab = labels[block.columns]
        nearest = slab[np.ix_(indices[0][block.rows] - block.columns.start, *indices[1:])]
        chosen[block.rows] = _largest_share(slab, (z[block.rows, block.columns], y, x), nearest)
    return chosen


def interpolate(array: NDArray[Any], shape: Shape, methods: tuple[Method, ...], out: Floats | None = None) -> Floats:
    """Interpolate a volume (Z, Y, X) to a new shape, one method an axis; no clipping.

    Parameters
    ----------
    array : ndarray of any real type
    shape : tuple of int
    methods : tuple of "cubic", "linear", "nearest" or "area"
        ``area`` averages what an output voxel covers: for making images coarser without aliasing.
    out : ndarray of float32, optional
        Where to put the result.
    """
    result = np.empty(shape, dtype=np.float32) if out is None else out
    planes = _Planes(array, shape, methods)
    flat = result.reshape(shape[0], -1)
    for block in blocks_of(array.shape[0], shape[0], methods[0]):
        np.matmul(block.matrix, planes.window(block.columns), out=flat[block.rows])
    return result


class _Planes:
    """Input planes interpolated along their own two axes, computed once each, as a window moves over them."""

    def __init__(self, array: NDArray[Any], shape: Shape, methods: tuple[Method, ...]) -> None:
        self.array, self.shape = array, shape
        self.y, self.x = (blocks_of(array.shape[a], shape[a], methods[a]) for a in (1, 2))
        widest = max(b.columns.stop - b.columns.start for b in blocks_of(array.shape[0], shape[0], methods[0]))
        self.planes = np.empty((widest, shape[1], shape[2]), dtype=np.float32)
        self.halfway = np.empty((array.shape[1], shape[2]), dtype=np.float32)
        self.held = slice(0, 0)

    def window(self, columns: slice) -> Floats:
        """Planes ``columns``, one a row; windows must come in ascending order."""
        kept = max(self.held.stop - columns.start, 0)
        if kept:
            first = columns.start - self.held.start
            self.planes[:kept] = self.planes[first : first + kept].copy()
        for number in range(columns.start + kept, columns.stop):
            self._interpolate(self.array[number], self.planes[number - columns.start])
        self.held = columns
        return self.planes[: columns.stop - columns.start].reshape(columns.stop - columns.start, -1)

    def _interpolate(self, plane: NDArray[Any], out: Floats) -> None:
        plane = plane.astype(np.float32, copy=False)
        for block in self.x:
            np.matmul(plane[:, block.columns], block.matrix.T, out=self.halfway[:, block.rows])
        for block in self.y:
            np.matmul(block.matrix, self.halfway[block.columns], out=out[block.rows])


def _largest_share(
    slab: NDArray[np.int16], matrices: tuple[Floats, Floats, Floats], nearest: NDArray[np.int16]
) -> NDArray[np.int16]:
    """Label with the largest interpolated indicator; each is computed only around its own voxels, the most frequent not at all."""
    lowest = int(slab.min())
    boxes = {lowest + i: box for i, box in enumerate(find_objects(slab.astype(np.int32) - lowest + 1)) if box}
    if len(boxes) == 1:
        return nearest
    widest = max(boxes, key=lambda v: np.prod([s.stop - s.start for s in boxes[v]]))
    reached = {
        value: tuple(_rows_that_see(m, s) for m, s in zip(matrices, box, strict=True))
        for value, box in boxes.items()
        if value != widest
    }
    # Where no other label reaches, the widest one is alone.
    mixed = tuple(
        slice(min(s.start for s in axis), max(s.stop for s in axis)) for axis in zip(*reached.values(), strict=True)
    )
    chosen = np.full(nearest.shape, widest, dtype=np.int16)
    part = chosen[mixed]
    rest, best = np.ones(part.shape, dtype=np.float32), np.zeros(part.shape, dtype=np.float32)
    tied, near = np.zeros(part.shape, dtype=bool), nearest[mixed]
    share_of_near = np.zeros(part.shape, dtype=np.float32)
    for value, rows in reached.items():
        share = (slab[boxes[value]] == value).astype(np.float32)
        for axis, matrix in enumerate(matrices):
            share = _along(share, axis, matrix[rows[axis], boxes[value][axis]])
        here = tuple(slice(r.start - m.start, r.stop - m.start) for r, m in zip(rows, mixed, strict=True))
        rest[here] -= share
        np.copyto(share_of_near[here], share, where=near[here] == value)
        _challenge(best[here], part[here], tied[here], share, value)
    _challenge(best, part, tied, rest, widest)
    np.copyto(share_of_near, rest, where=near == widest)
    # The nearest voxel's label wins a tie that it is part of.
    np.copyto(part, near, where=tied & (share_of_near >= best - _TIE))
    return chosen


def _challenge(best: Floats, chosen: NDArray[np.int16], tied: NDArray[np.bool_], share: Floats, value: int) -> None:
    """Put a label where its share is larger than the best one yet, and mark where it is as large."""
    larger = share > best + _TIE
    np.logical_and(tied, ~larger, out=tied)
    np.logical_or(tied, np.abs(share - best) <= _TIE, out=tied)
    chosen[larger] = value
    np.maximum(best, share, out=best)


def _rows_that_see(matrix: Floats, columns: slice) -> slice:
    rows = np.flatnonzero(matrix[:, columns].any(axis=1))
    return slice(int(rows[0]), int(rows[-1]) + 1) if len(rows) else slice(0, 0)


def _along(array: Floats, axis: int, matrix: Floats) -> Floats:
    if axis == 2:
        return array @ matrix.T
    if axis == 1:
        return matrix @ array
    return (matrix @ array.reshape(array.shape[0], -1)).reshape(matrix.shape[0], *array.shape[1:])


def nearest_indices(n_in: int, n_out: int) -> NDArray[np.intp]:
    """Index of the nearest input voxel for each output voxel; computed in float64 in the interpolator's own order of operations."""
    centres = n_in / n_out * (np.arange(n_out) + 0.5) - 0.5
    indices: NDArray[np.intp] = np.clip(np.floor(centres + 0.5), 0, n_in - 1).astype(np.intp)
    return indices


@lru_cache(maxsize=128)
def axis_matrix(n_in: int, n_out: int, method: Method) -> Floats:
    """Matrix (n_out, n_in) of one axis's interpolation: voxel boundaries aligned, edges extended."""
    if n_in == n_out:
        return np.eye(n_in, dtype=np.float32)
    if method == "nearest":
        return np.eye(n_in, dtype=np.float32)[nearest_indices(n_in, n_out)]
    if method == "area":
        edges = np.arange(n_out + 1) * (n_in / n_out)
        voxel = np.arange(n_in)
        overlap = np.minimum(edges[1:, None], voxel + 1) - np.maximum(edges[:-1, None], voxel)
        shares: Floats = (np.maximum(overlap, 0) * (n_out / n_in)).astype(np.float32)
        return shares
    order = 3 if method == "cubic" else 1
    matrix = zoom(np.eye(n_in), (n_out / n_in, 1), order=order, mode="nearest", grid_mode=True)
    matrix[np.abs(matrix) < _NEGLIGIBLE] = 0
    rounded: Floats = np.ascontiguousarray(matrix, dtype=np.float32)
    return rounded


@lru_cache(maxsize=128)
def blocks_of(n_in: int, n_out: int, method: Method) -> tuple[Block, ...]:
    """Cut an axis's matrix into blocks of rows, each with the run of columns that is not 0."""
    return tuple(_cut(axis_matrix(n_in, n_out, method)))


def _cut(matrix: Floats) -> Iterator[Block]:
    for start in range(0, len(matrix), _BLOCK_ROWS):
        rows = matrix[start : start + _BLOCK_ROWS]
        seen = np.flatnonzero(rows.any(axis=0))
        columns = slice(int(seen[0]), int(seen[-1]) + 1)
        yield Block(slice(start, start + len(rows)), columns, np.ascontiguousarray(rows[:, columns]))


def _methods(in_plane: Method, apart: int | None) -> tuple[Method, ...]:
    return tuple("nearest" if axis == apart else in_plane for axis in range(3))
