"""The digest of what an image shows, whatever format, compression, number type or storage order it has.

Two files of one scan have one digest. It finds a patient who lies under two ids.
"""

from hashlib import sha256
from math import log

import numpy as np
from numpy.typing import NDArray

from segpipe.core.geometry import Spacing

_STEPS = 1000
"""Steps of a spacing's logarithm: sizes are told apart from a difference of 0.1 % on; formats round them by less."""


def image_digest(array: NDArray[np.generic], spacing_mm: Spacing) -> str:
    """Return the sha256 of an image's voxels and spacing.

    Values are compared in single precision, the precision in which every stage works. NaN is one value, and so is zero, whatever its
    sign. The position in the world has no part in it: a copy whose header was repaired keeps its digest.

    Parameters
    ----------
    array : ndarray, shape (C, Z, Y, X)
        Voxels on canonical axes.
    spacing_mm : tuple of float
        Voxel sizes (z, y, x), in mm.

    Returns
    -------
    str
        64 hexadecimal digits.
    """
    sizes = [round(log(size) * _STEPS) for size in spacing_mm]
    hashed = sha256(repr((array.shape, sizes)).encode())
    # Plane by plane: the copy in single precision is never whole.
    for plane in (plane for channel in array for plane in channel):
        values = np.ascontiguousarray(plane, dtype="<f4") + np.float32(0)
        values[np.isnan(values)] = np.nan
        hashed.update(values.tobytes())
    return hashed.hexdigest()
