"""Measurements on arrays. Pure: no files."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_fill_holes

from segpipe.fingerprint.schema import CaseFingerprint, IntensityStatistics
from segpipe.volume import Volume

Box = tuple[slice, slice, slice]

# Points that describe one case's intensities. Statistics over cases are taken from these, so that every case weighs the
# same and no random sample is involved; a percentile's rank is exact to 1 / N_QUANTILES.
N_QUANTILES = 10_000


@dataclass(frozen=True)
class CaseMeasurements:
    """One case's fingerprint and the sketch of its foreground intensities."""

    fingerprint: CaseFingerprint
    quantiles: NDArray[np.float32]
    """(C, N_QUANTILES) evenly spaced quantiles of the foreground, minimum and maximum included; (C, 0) without foreground."""
    moments: NDArray[np.float64]
    """(C, 2) mean and mean square of the foreground."""


def nonzero_mask(image: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Voxels (Z, Y, X) that are non-zero in any channel of (C, Z, Y, X), holes filled (nnU-Net's rule)."""
    mask: NDArray[np.bool_] = (image != 0).any(axis=0)
    if mask.all():
        return mask
    filled: NDArray[np.bool_] = binary_fill_holes(mask)
    return filled


def bounding_box(mask: NDArray[np.bool_]) -> Box:
    """Smallest box that holds every true voxel.

    Raises
    ------
    ValueError
        If no voxel is true.
    """
    slices = []
    for axis in range(3):
        others = tuple(a for a in range(3) if a != axis)
        hits = np.flatnonzero(mask.any(axis=others))
        if not hits.size:
            raise ValueError("the mask is empty")
        slices.append(slice(int(hits[0]), int(hits[-1]) + 1))
    return slices[0], slices[1], slices[2]


def measure_case(case_id: str, image: Volume, labels: NDArray[np.int32]) -> CaseMeasurements:
    """Measure one case: image (C, Z, Y, X) with its grid and label values (Z, Y, X)."""
    box = bounding_box(nonzero_mask(image.array))
    values, counts = np.unique(labels, return_counts=True)
    foreground = labels > 0
    quantiles = np.empty((image.array.shape[0], N_QUANTILES if foreground.any() else 0), dtype=np.float32)
    moments = np.zeros((image.array.shape[0], 2))
    for channel, array in enumerate(image.array):
        if foreground.any():
            quantiles[channel], moments[channel] = _sketch(array[foreground])
    grid = image.grid
    return CaseMeasurements(
        CaseFingerprint(
            case=case_id,
            shape=grid.shape,
            spacing_mm=grid.spacing_mm,
            shape_after_crop=(box[0].stop - box[0].start, box[1].stop - box[1].start, box[2].stop - box[2].start),
            label_voxels={int(v): int(n) for v, n in zip(values, counts, strict=True) if v > 0},
        ),
        quantiles,
        moments,
    )


def _sketch(voxels: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    ordered = np.sort(voxels)
    ranks = np.linspace(0, len(ordered) - 1, N_QUANTILES)
    wide = voxels.astype(np.float64)
    return np.interp(ranks, np.arange(len(ordered)), ordered).astype(np.float32), np.array(
        [wide.mean(), (wide**2).mean()]
    )


def intensity_statistics(cases: list[CaseMeasurements]) -> tuple[IntensityStatistics, ...]:
    """Statistics of each channel over cases; cases without foreground do not count. Empty when there are none."""
    seen = [c for c in cases if c.quantiles.shape[1]]
    if not seen:
        return ()
    statistics = []
    for channel in range(seen[0].quantiles.shape[0]):
        pooled = np.concatenate([c.quantiles[channel] for c in seen]).astype(np.float64)
        mean, mean_square = np.mean([c.moments[channel] for c in seen], axis=0)
        low, median, high = np.percentile(pooled, [0.5, 50, 99.5])
        statistics.append(
            IntensityStatistics(
                mean=float(mean),
                std=float(np.sqrt(max(mean_square - mean**2, 0))),
                median=float(median),
                min=float(pooled.min()),
                max=float(pooled.max()),
                percentile_00_5=float(low),
                percentile_99_5=float(high),
            )
        )
    return tuple(statistics)


def flat_cases(cases: list[CaseFingerprint]) -> list[CaseFingerprint]:
    """Where all cases are single slices along an axis, make that the coarsest one, so that plans are two-dimensional.

    The distance of slices that have no neighbour means nothing; nnU-Net records 999 times the pixel size.
    """
    flat = [a for a in range(3) if all(c.shape[a] == 1 for c in cases)]
    if len(flat) != 1:
        return cases

    def widened(case: CaseFingerprint) -> CaseFingerprint:
        spacing = list(case.spacing_mm)
        spacing[flat[0]] = 999 * max(s for a, s in enumerate(spacing) if a != flat[0])
        return case.model_copy(update={"spacing_mm": tuple(spacing)})

    return [widened(c) for c in cases]


def median_relative_size(cases: list[CaseFingerprint]) -> float:
    """Median over cases of the voxels left after cropping, as a fraction."""
    return float(np.median([np.prod(c.shape_after_crop) / np.prod(c.shape) for c in cases]))
