"""Intensity normalisation: five schemes. Pure; the formulas are nnU-Net's."""

import numpy as np
from numpy.typing import NDArray

from segpipe.errors import CaseError
from segpipe.fingerprint.schema import IntensityStatistics
from segpipe.planning.schema import Normalisation

Floats = NDArray[np.float32]

# A constant channel would be divided by zero.
_STD_FLOOR = 1e-8


def normalise(
    image: Floats,
    schemes: tuple[Normalisation, ...],
    use_mask: tuple[bool, ...],
    inside: NDArray[np.bool_],
    statistics: tuple[IntensityStatistics, ...],
) -> Floats:
    """Normalise each channel of an image (C, Z, Y, X) by its own scheme.

    Parameters
    ----------
    image : ndarray of float32, shape (C, Z, Y, X)
    schemes, use_mask : tuple, one a channel
        With a mask, statistics are taken and values changed inside the non-zero region only; outside becomes 0.
    inside : ndarray of bool, shape (Z, Y, X)
        The non-zero region.
    statistics : tuple of IntensityStatistics
        The dataset's, needed by ``ct``.

    Raises
    ------
    CaseError
        If ``rgb_0_1`` meets values outside 0 to 255.
    """
    normalised = np.empty_like(image)
    for channel, scheme in enumerate(schemes):
        array = image[channel]
        if scheme == "ct":
            normalised[channel] = ct(array, statistics[channel])
        elif scheme == "zscore":
            normalised[channel] = zscore(array, inside if use_mask[channel] else None)
        elif scheme == "rescale_0_1":
            low = array.min()
            normalised[channel] = (array - low) / max(float(array.max() - low), _STD_FLOOR)
        elif scheme == "rgb_0_1":
            if array.min() < 0 or array.max() > 255:
                raise CaseError(
                    f"channel {channel} holds {array.min():g} to {array.max():g}; "
                    "'rgb_to_0_1' expects 0 to 255: choose another normalisation"
                )
            normalised[channel] = array / 255
        else:
            normalised[channel] = array
    return normalised


def zscore(array: Floats, mask: NDArray[np.bool_] | None) -> Floats:
    """Subtract the mean and divide by the standard deviation, of the masked voxels where there is a mask."""
    if mask is None:
        mean, std = _moments(array)
        return (array - mean) / std
    result = np.zeros_like(array)
    mean, std = _moments(array[mask])
    result[mask] = (array[mask] - mean) / std
    return result


def _moments(voxels: Floats) -> tuple[np.float32, np.float32]:
    # Summed in float64: a float32 mean over 10^8 voxels drifts.
    return np.float32(voxels.mean(dtype=np.float64)), np.float32(max(float(voxels.std(dtype=np.float64)), _STD_FLOOR))


def ct(array: Floats, statistics: IntensityStatistics) -> Floats:
    """Clip to the dataset's foreground percentiles, then subtract its foreground mean and divide by its deviation."""
    clipped = np.clip(array, np.float32(statistics.percentile_00_5), np.float32(statistics.percentile_99_5))
    return (clipped - np.float32(statistics.mean)) / np.float32(max(statistics.std, _STD_FLOOR))
