"""Distances between the surfaces of two masks, in mm.

A mask's surface is its voxels that touch, by a face, a voxel outside the mask or the image's border. An axis of one slice is no axis:
the surface of a two-dimensional mask is its contour.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion, distance_transform_edt

from segpipe.metrics.surface_area import element_codes, element_sizes

Mask = NDArray[np.bool_]
Floats = NDArray[np.float64]
SurfaceUnit = Literal["voxels", "area"]
"""What a share of a surface is counted in."""


@dataclass(frozen=True)
class SurfaceDistances:
    """Distance of each element of a surface to the other mask's surface, and how much each element counts."""

    from_prediction_mm: Floats
    from_reference_mm: Floats
    prediction_sizes: Floats
    reference_sizes: Floats

    def normalised_surface_dice(self, tolerance_mm: float) -> float:
        """Share of both surfaces that lies within a tolerance of the other, in [0, 1].

        Source: Nikolov et al., J Med Internet Res 23(7):e26151, 2021, who count areas.
        """
        within = (
            self.prediction_sizes[self.from_prediction_mm <= tolerance_mm].sum()
            + self.reference_sizes[self.from_reference_mm <= tolerance_mm].sum()
        )
        return float(within / (self.prediction_sizes.sum() + self.reference_sizes.sum()))

    def hausdorff_mm(self, percentile: float = 95) -> float:
        """Larger of the two directed percentiles of distance (100 gives the Hausdorff distance), whatever the elements' sizes."""
        return float(
            max(np.percentile(self.from_prediction_mm, percentile), np.percentile(self.from_reference_mm, percentile))
        )


def surface_distances(
    prediction: Mask, reference: Mask, spacing_mm: tuple[float, ...], unit: SurfaceUnit = "voxels"
) -> SurfaceDistances:
    """Measure the distances between two surfaces.

    Parameters
    ----------
    prediction, reference : ndarray of bool, shape (Z, Y, X)
        Masks on the same grid, neither empty.
    spacing_mm : tuple of float
        (z, y, x).
    unit : "voxels" or "area"
        Elements of a surface: its voxels, each of which counts 1; or pieces of the surface between voxels, each of which counts its
        area in mm², of two-dimensional masks pieces of the contour with their length in mm (:mod:`segpipe.metrics.surface_area`).

    Raises
    ------
    ValueError
        If a mask is empty (there is no distance to nothing) or the shapes differ.
    """
    if prediction.shape != reference.shape:
        raise ValueError(f"prediction has shape {prediction.shape}, reference {reference.shape}; expected the same")
    if not prediction.any() or not reference.any():
        raise ValueError("a mask is empty; an empty mask has no surface")
    axes = _axes_of(prediction.shape)
    spacing = tuple(spacing_mm[axis] for axis in axes)
    single = tuple(axis for axis in range(prediction.ndim) if axis not in axes)
    masks = _crop_to_either(prediction.squeeze(single), reference.squeeze(single))
    elements: Callable[[Mask], tuple[Mask, Floats]] = (
        _voxels if unit == "voxels" else lambda mask: _pieces(mask, spacing)
    )
    (ours, our_sizes), (theirs, their_sizes) = (elements(mask) for mask in masks)
    to_ours, to_theirs = (distance_transform_edt(~s, sampling=spacing) for s in (ours, theirs))
    return SurfaceDistances(to_theirs[ours], to_ours[theirs], our_sizes, their_sizes)


def _axes_of(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Axes along which an image extends: those of more than one slice; all of them of a single voxel."""
    return tuple(axis for axis, n in enumerate(shape) if n > 1) or tuple(range(len(shape)))


def _voxels(mask: Mask) -> tuple[Mask, Floats]:
    surface = mask & ~binary_erosion(mask)
    return surface, np.ones(int(surface.sum()))


def _pieces(mask: Mask, spacing_mm: tuple[float, ...]) -> tuple[Mask, Floats]:
    codes = element_codes(mask)
    surface = (codes > 0) & (codes < codes.dtype.type(2**2**mask.ndim - 1))
    return surface, element_sizes(spacing_mm)[codes[surface]]


def _crop_to_either(first: Mask, second: Mask) -> tuple[Mask, Mask]:
    """Cut both masks to the box of their union, with a margin so that the cut makes no surface."""
    union = first | second
    box = []
    for axis in range(union.ndim):
        hits = np.flatnonzero(union.any(axis=tuple(a for a in range(union.ndim) if a != axis)))
        box.append(slice(int(hits[0]), int(hits[-1]) + 1))
    return np.pad(first[tuple(box)], 1), np.pad(second[tuple(box)], 1)
