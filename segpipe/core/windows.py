"""Sliding windows: where they start, how they are weighted. Pure.

The rules are nnU-Net's (tile starts evenly spread, Gaussian of sigma = patch / 8), so that the same weights give the same masks.
"""

from functools import lru_cache
from math import ceil

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter


def axis_starts(size: int, patch: int, step: float) -> list[int]:
    """Starts of windows of length ``patch`` that cover ``size`` voxels with steps of at most ``step * patch``.

    Raises
    ------
    ValueError
        If the patch is longer than the axis (pad first) or the step is not in (0, 1].
    """
    if patch > size:
        raise ValueError(f"patch {patch} is longer than the axis {size}; pad the image to the patch first")
    if not 0 < step <= 1:
        raise ValueError(f"step is {step}; expected a fraction of the patch in (0, 1]")
    n_windows = ceil((size - patch) / (patch * step)) + 1
    spread = (size - patch) / (n_windows - 1) if n_windows > 1 else 0.0
    return [int(np.round(spread * i)) for i in range(n_windows)]


@lru_cache(maxsize=16)
def gaussian_weights(patch: tuple[int, ...], sigma_scale: float = 1 / 8) -> NDArray[np.float32]:
    """Importance of each voxel of a window: a Gaussian about the centre, largest value 10, never 0."""
    impulse = np.zeros(patch)
    impulse[tuple(p // 2 for p in patch)] = 1
    weights = gaussian_filter(impulse, [p * sigma_scale for p in patch], mode="constant")
    weights = (weights / weights.max() * 10).astype(np.float32)
    # Far corners underflow where nnU-Net keeps the weights in half precision; its floor is kept.
    floored: NDArray[np.float32] = np.maximum(weights, np.float32(5.96e-8))
    return floored


def padding_to(shape: tuple[int, ...], patch: tuple[int, ...]) -> list[tuple[int, int]]:
    """Voxels to add before and after each axis so that the patch fits; the odd one goes after."""
    missing = [max(p - n, 0) for n, p in zip(shape, patch, strict=True)]
    return [(m // 2, m - m // 2) for m in missing]
