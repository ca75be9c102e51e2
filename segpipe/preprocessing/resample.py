"""Resampling as linear algebra: one small matrix an axis. Pure.

Interpolation that treats axes separately is a matrix product along each axis, whatever its order: the matrix is what the
interpolator does to the unit vectors. It equals ``skimage.transform.resize(mode="edge", anti_aliasing=False)``, which
nnU-Net uses, and is done by BLAS in float32.
"""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import zoom

ANISOTROPY_THRESHOLD = 3.0
"""Ratio of spacings over which the coarse axis is interpolated apart, by nearest neighbour (nnU-Net's rule)."""

Floats = NDArray[np.float32]
Shape = tuple[int, ...]


def separate_axis(spacing_mm: tuple[float, ...], new_spacing_mm: tuple[float, ...]) -> int | None:
    """Axis that is interpolated apart, or None.

    The coarsest axis of the old spacing if it is anisotropic, else of the new one; none where two axes are equally coarse.
    """
    for spacing in (spacing_mm, new_spacing_mm):
        if max(spacing) / min(spacing) > ANISOTROPY_THRESHOLD:
            coarsest = [a for a in range(3) if spacing[a] == max(spacing)]
            return coarsest[0] if len(coarsest) == 1 else None
    return None


def resample_image(image: Floats, shape: Shape, *, apart: int | None) -> Floats:
    """Resample channels (C, Z, Y, X) to a spatial shape with cubic splines; values stay in the range of the input.

    Parameters
    ----------
    image : ndarray of float32, shape (C, Z, Y, X)
    shape : tuple of int
        New (Z, Y, X).
    apart : int or None
        Axis taken by nearest neighbour, the others then being interpolated slice by slice.
    """
    if image.shape[1:] == shape:
        return image
    resampled = np.empty((image.shape[0], *shape), dtype=np.float32)
    for channel, array in enumerate(image):
        # The interpolator clips to the range of what it was given: a volume, or a slice.
        axes = None if apart is None else tuple(a for a in range(3) if a != apart)
        low, high = array.min(axis=axes, keepdims=True), array.max(axis=axes, keepdims=True)
        values = _along_axes(array, shape, order=3, skip=apart)
        np.clip(values, low, high, out=values)
        resampled[channel] = (
            values if apart is None else values.take(nearest_indices(array.shape[apart], shape[apart]), axis=apart)
        )
    return resampled


def resample_labels(labels: NDArray[np.int16], shape: Shape, *, apart: int | None) -> NDArray[np.int16]:
    """Resample labels (Z, Y, X): each label's indicator linearly, the largest wins, ties go to the nearest neighbour's label."""
    if labels.shape == shape:
        return labels
    indices = [nearest_indices(n, m) for n, m in zip(labels.shape, shape, strict=True)]
    nearest: NDArray[np.int16] = labels[np.ix_(*indices)]
    values = np.unique(labels)
    if len(values) == 1:
        return nearest
    best = np.full(shape, -1, dtype=np.float32)
    chosen = np.zeros(shape, dtype=np.int16)
    tied = np.zeros(shape, dtype=bool)
    for value in values:
        share = _along_axes((labels == value).astype(np.float32), shape, order=1, skip=apart)
        if apart is not None:
            share = share.take(indices[apart], axis=apart)
        # Shares are sums of products of fractions: float32 leaves less than this between equal ones.
        larger = share > best + 1e-5
        tied = (tied & ~larger) | (np.abs(share - best) <= 1e-5)
        chosen[larger] = value
        np.maximum(best, share, out=best)
    chosen[tied] = nearest[tied]
    return chosen


def nearest_indices(n_in: int, n_out: int) -> NDArray[np.intp]:
    """Index of the nearest input voxel for each output voxel; computed in float64 in the interpolator's own order of operations."""
    centres = n_in / n_out * (np.arange(n_out) + 0.5) - 0.5
    indices: NDArray[np.intp] = np.clip(np.floor(centres + 0.5), 0, n_in - 1).astype(np.intp)
    return indices


@lru_cache(maxsize=128)
def interpolation_matrix(n_in: int, n_out: int, order: int) -> Floats:
    """Matrix (n_out, n_in) of one axis's interpolation, edges extended, voxel boundaries aligned."""
    unit = np.eye(n_in)
    matrix = np.stack([zoom(row, n_out / n_in, order=order, mode="nearest", grid_mode=True) for row in unit], axis=1)
    return np.ascontiguousarray(matrix, dtype=np.float32)


def _along_axes(array: Floats, shape: Shape, *, order: int, skip: int | None) -> Floats:
    """Interpolate every axis but ``skip`` to its new length."""
    result = array
    for axis in (2, 1, 0):
        if axis != skip and result.shape[axis] != shape[axis]:
            result = _along(result, axis, interpolation_matrix(result.shape[axis], shape[axis], order))
    return np.array(result) if result is array else result


def _along(array: Floats, axis: int, matrix: Floats) -> Floats:
    if axis == 2:
        return array @ matrix.T
    if axis == 1:
        return matrix @ array
    n, *rest = array.shape
    return (matrix @ np.ascontiguousarray(array).reshape(n, -1)).reshape(matrix.shape[0], *rest)
