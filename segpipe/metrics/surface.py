"""Distances between the surfaces of two masks, in mm.

A mask's surface is its voxels that touch, by a face, a voxel outside the mask or the image's border.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion, distance_transform_edt

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class SurfaceDistances:
    """Distance of each surface voxel to the other mask's surface."""

    from_prediction_mm: NDArray[np.float64]
    from_reference_mm: NDArray[np.float64]

    def normalised_surface_dice(self, tolerance_mm: float) -> float:
        """Share of both surfaces that lies within a tolerance of the other, in [0, 1].

        Source: Nikolov et al., J Med Internet Res 23(7):e26151, 2021, counted in surface voxels.
        """
        within = (self.from_prediction_mm <= tolerance_mm).sum() + (self.from_reference_mm <= tolerance_mm).sum()
        return float(within / (self.from_prediction_mm.size + self.from_reference_mm.size))

    def hausdorff_mm(self, percentile: float = 95) -> float:
        """Larger of the two directed percentiles of distance (100 gives the Hausdorff distance)."""
        return float(
            max(np.percentile(self.from_prediction_mm, percentile), np.percentile(self.from_reference_mm, percentile))
        )


def surface_distances(prediction: Mask, reference: Mask, spacing_mm: tuple[float, ...]) -> SurfaceDistances:
    """Measure the distances between two surfaces.

    Parameters
    ----------
    prediction, reference : ndarray of bool, shape (Z, Y, X)
        Masks on the same grid, neither empty.
    spacing_mm : tuple of float
        (z, y, x).

    Raises
    ------
    ValueError
        If a mask is empty (there is no distance to nothing) or the shapes differ.
    """
    if prediction.shape != reference.shape:
        raise ValueError(f"prediction has shape {prediction.shape}, reference {reference.shape}; expected the same")
    if not prediction.any() or not reference.any():
        raise ValueError("a mask is empty; an empty mask has no surface")
    surfaces = [mask & ~binary_erosion(mask) for mask in _crop_to_either(prediction, reference)]
    to_prediction, to_reference = (distance_transform_edt(~s, sampling=spacing_mm) for s in surfaces)
    return SurfaceDistances(to_reference[surfaces[0]], to_prediction[surfaces[1]])


def _crop_to_either(first: Mask, second: Mask) -> tuple[Mask, Mask]:
    """Cut both masks to the box of their union, with a margin so that the cut makes no surface."""
    union = first | second
    box = []
    for axis in range(union.ndim):
        hits = np.flatnonzero(union.any(axis=tuple(a for a in range(union.ndim) if a != axis)))
        box.append(slice(int(hits[0]), int(hits[-1]) + 1))
    return np.pad(first[tuple(box)], 1), np.pad(second[tuple(box)], 1)
