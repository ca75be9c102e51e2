"""Intensity normalisation: five schemes. Pure; the formulas are nnU-Net's."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from segpipe.dataset.fingerprint.schema import IntensityStatistics
from segpipe.errors import CaseError
from segpipe.planning.schema import Normalisation

Floats = NDArray[np.float32]

# A constant channel would be divided by zero.
_STD_FLOOR = 1e-8


def normalise(
    image: NDArray[Any],
    schemes: tuple[Normalisation, ...],
    inside: tuple[NDArray[np.bool_] | None, ...],
    statistics: tuple[IntensityStatistics, ...],
) -> Floats:
    """Normalise each channel of an image (C, Z, Y, X) by its own scheme; the image itself is left as it is.

    Parameters
    ----------
    image : ndarray of any real type, shape (C, Z, Y, X)
    schemes : tuple, one a channel
    inside : tuple of ndarray of bool, shape (Z, Y, X), or None, one a channel
        With a mask, statistics are taken and values changed inside it only; outside becomes 0.
    statistics : tuple of IntensityStatistics
        The dataset's, needed by ``ct``.

    Returns
    -------
    ndarray of float32, shape (C, Z, Y, X)

    Raises
    ------
    CaseError
        If ``rgb_0_1`` meets values outside 0 to 255.
    """
    # In the order of its axes: a reoriented view would stay one, and products over it are slow.
    normalised = image.astype(np.float32, order="C")
    for channel, scheme in enumerate(schemes):
        array = normalised[channel]
        if scheme == "ct":
            ct(array, statistics[channel])
        elif scheme == "zscore":
            zscore(array, inside[channel])
        elif scheme == "rescale_0_1":
            low, high = array.min(), array.max()
            array -= low
            array /= max(float(high - low), _STD_FLOOR)
        elif scheme == "rgb_0_1":
            if array.min() < 0 or array.max() > 255:
                raise CaseError(
                    f"channel {channel} holds {array.min():g} to {array.max():g}; "
                    "'rgb_to_0_1' expects 0 to 255: choose another normalisation"
                )
            array /= 255
    return normalised


def zscore(array: Floats, mask: NDArray[np.bool_] | None) -> None:
    """Subtract the mean and divide by the standard deviation, in place; of the masked voxels where there is a mask."""
    mean, std = _moments(array if mask is None else array[mask])
    array -= mean
    array /= std
    if mask is not None:
        array[~mask] = 0


def _moments(voxels: Floats) -> tuple[np.float32, np.float32]:
    # Summed in float64: a float32 mean over 10^8 voxels drifts.
    mean = voxels.mean(dtype=np.float64)
    # Plane by plane: a float64 copy of the whole would be twice the image.
    squares = sum(float(np.square(part - mean, dtype=np.float64).sum()) for part in _parts(voxels))
    return np.float32(mean), np.float32(max(np.sqrt(squares / voxels.size), _STD_FLOOR))


def _parts(voxels: Floats) -> list[Floats]:
    return np.array_split(voxels.ravel(), max(voxels.size // 2**20, 1))


def ct(array: Floats, statistics: IntensityStatistics) -> None:
    """Clip to the dataset's foreground percentiles, subtract its foreground mean and divide by its deviation; in place."""
    np.clip(array, np.float32(statistics.percentile_00_5), np.float32(statistics.percentile_99_5), out=array)
    array -= np.float32(statistics.mean)
    array /= np.float32(max(statistics.std, _STD_FLOOR))


def outside_values(
    schemes: tuple[Normalisation, ...], masked: tuple[bool, ...], statistics: tuple[IntensityStatistics, ...]
) -> tuple[float, ...] | None:
    """Return what each channel is where there is no body: the lower bound of CT (air), 0 outside a mask.

    None where a channel has no such value.

    Parameters
    ----------
    schemes : tuple, one a channel
    masked : tuple of bool, one a channel
        Normalised inside the non-zero region only.
    statistics : tuple of IntensityStatistics
        The dataset's, needed by ``ct``.
    """
    values = []
    for channel, (scheme, inside) in enumerate(zip(schemes, masked, strict=True)):
        if scheme == "ct":
            known = statistics[channel]
            values.append((known.percentile_00_5 - known.mean) / max(known.std, _STD_FLOOR))
        elif scheme == "zscore" and inside:
            values.append(0.0)
        else:
            return None
    return tuple(values)
