"""Measurements on arrays. Pure: no files."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segpipe.core.geometry import Shape, Spacing, bounding_box
from segpipe.core.volume import Volume
from segpipe.dataset.check import structure_mask, value_counts
from segpipe.dataset.fingerprint.schema import PERCENTILES, CaseFingerprint, IntensityStatistics

# Points that describe one case's intensities. Statistics over cases are taken from these, so that every case weighs the
# same and no random sample is involved; a percentile's rank is exact to 1 / N_QUANTILES.
N_QUANTILES = 10_000
# Voxels of an image that its percentiles are taken from, on a regular lattice.
_N_SAMPLED = 200_000
_SINGLE_SLICES = 999
"""Distance of slices that have no neighbour, in pixels."""


@dataclass(frozen=True)
class CaseMeasurements:
    """One case's fingerprint and the sketch of its foreground intensities."""

    fingerprint: CaseFingerprint
    quantiles: NDArray[np.float32]
    """(C, N_QUANTILES) evenly spaced quantiles of the foreground, minimum and maximum included; (C, 0) without foreground."""


def measure_case(
    case_id: str,
    image: Volume,
    labels: NDArray[np.unsignedinteger],
    shape: Shape,
    aside: tuple[int, ...] = (0,),
) -> CaseMeasurements:
    """Measure one case.

    Parameters
    ----------
    case_id : str
    image : Volume
        (C, Z, Y, X), cropped to the non-zero voxels.
    labels : ndarray, shape (Z, Y, X)
        Stored values.
    shape : tuple of int
        Shape of the image before cropping.
    aside : tuple of int
        Values of the background, and of voxels to ignore.
    """
    found = value_counts(labels)
    counts = {int(v): n for v, n in found.items() if v not in aside}
    quantiles = np.empty((image.array.shape[0], N_QUANTILES if counts else 0), dtype=np.float32)
    moments: list[tuple[float, float]] = []
    if counts:
        foreground = structure_mask(labels, aside)
        for channel, array in enumerate(image.array):
            quantiles[channel], moment = _sketch(array[foreground])
            moments.append(moment)
    return CaseMeasurements(
        CaseFingerprint(
            case=case_id,
            shape=shape,
            spacing_mm=image.grid.spacing_mm,
            shape_after_crop=image.grid.shape,
            label_voxels=counts,
            ignored_voxels=sum(n for v, n in found.items() if v in aside[1:]),
            moments=tuple(moments),
            percentiles=image_percentiles(image.array),
        ),
        quantiles,
    )


def image_percentiles(image: NDArray[Any]) -> tuple[tuple[float, ...], ...]:
    """PERCENTILES of the non-zero voxels of each channel of (C, Z, Y, X); of 0 where a channel has none.

    They are taken on a lattice of the box of the non-zero voxels, so that a whole image and its box give the same.
    """
    inside_of = (image != 0).any(axis=0)
    if inside_of.any():
        image = image[(slice(None), *bounding_box(inside_of))]
    step = max(int((image[0].size / _N_SAMPLED) ** (1 / 3)), 1)
    z, y, x = (slice(None, None, min(step, n)) for n in image.shape[1:])
    found = []
    for array in image:
        sampled = array[z, y, x]
        inside = sampled[sampled != 0]
        values = np.percentile(inside, PERCENTILES) if len(inside) else np.zeros(len(PERCENTILES))
        found.append(tuple(float(v) for v in values))
    return tuple(found)


def _sketch(voxels: NDArray[Any]) -> tuple[NDArray[np.float32], tuple[float, float]]:
    """Quantiles of foreground voxels, and their mean and mean square."""
    ordered = np.sort(voxels, kind="stable")
    ranks = np.linspace(0, len(ordered) - 1, N_QUANTILES)
    low = np.floor(ranks).astype(np.intp)
    high = np.minimum(low + 1, len(ordered) - 1)
    share = (ranks - low).astype(np.float32)
    below, above = ordered[low].astype(np.float32), ordered[high].astype(np.float32)
    wide = voxels.astype(np.float64)
    return below + (above - below) * share, (float(wide.mean()), float((wide @ wide) / len(wide)))


def intensity_statistics(cases: list[CaseMeasurements]) -> tuple[IntensityStatistics, ...]:
    """Statistics of each channel over cases; cases without foreground do not count. Empty when there are none."""
    seen = [c for c in cases if c.quantiles.shape[1]]
    if not seen:
        return ()
    statistics = []
    for channel in range(seen[0].quantiles.shape[0]):
        pooled = np.concatenate([c.quantiles[channel] for c in seen]).astype(np.float64)
        mean, mean_square = np.mean([c.fingerprint.moments[channel] for c in seen], axis=0)
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
    return [c.model_copy(update={"spacing_mm": widened(c.spacing_mm, flat[0])}) for c in cases]


def widened(spacing_mm: Spacing, flat: int) -> Spacing:
    """Return a spacing (z, y, x) with the conventional distance of single slices along an axis: 999 times the pixel size (nnU-Net's)."""
    slices = _SINGLE_SLICES * max(s for axis, s in enumerate(spacing_mm) if axis != flat)
    z, y, x = (slices if axis == flat else s for axis, s in enumerate(spacing_mm))
    return z, y, x


def flat_axis(spacings_mm: Sequence[tuple[float, float]]) -> int | None:
    """Return the axis (0 for z) along which all of some cases were single slices, by their ranges of spacing; None where there is none.

    Parameters
    ----------
    spacings_mm : sequence of tuple of float
        Lowest and highest spacing along each axis, as :func:`flat_cases` left them.
    """
    for axis, (low, _) in enumerate(spacings_mm):
        others = [lowest for other, (lowest, _) in enumerate(spacings_mm) if other != axis]
        # Rounding aside: no scanner's slices lie so far apart.
        if low >= 0.999 * _SINGLE_SLICES * max(others):
            return axis
    return None


def median_relative_size(cases: list[CaseFingerprint]) -> float:
    """Median over cases of the voxels left after cropping, as a fraction."""
    return float(np.median([np.prod(c.shape_after_crop) / np.prod(c.shape) for c in cases]))
