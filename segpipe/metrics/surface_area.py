"""How large the surface of a mask is between its voxels: in each cell of neighbouring voxel centres, by marching cubes.

A cell has a voxel centre at each corner: 8 in a volume, 4 in an image. Which of them lie in the mask is the cell's code. The surface
halves each edge between a voxel inside and one outside; its size in the cell depends on the code and on the spacing alone. So does
DeepMind's ``surface-distance``, whose values these are.
"""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

_BYTE = np.uint8


def element_codes(mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Return the code of each cell of a mask of one to three axes: a bit a corner, the first corner's the highest.

    Parameters
    ----------
    mask : ndarray of bool
        (..., Y, X); the result is one cell shorter along each axis.
    """
    codes = np.zeros(tuple(n - 1 for n in mask.shape), dtype=_BYTE)
    for corner in np.ndindex((2,) * mask.ndim):
        cells = tuple(slice(first, first + n - 1) for first, n in zip(corner, mask.shape, strict=True))
        codes = (codes << 1) | mask[cells].astype(_BYTE)
    return codes


@lru_cache(maxsize=64)
def element_sizes(spacing_mm: tuple[float, ...]) -> NDArray[np.float64]:
    """Return the size of the surface in a cell, by its code: mm² in a volume, mm in an image, points along a single axis.

    Parameters
    ----------
    spacing_mm : tuple of float
        One, two or three.
    """
    n_corners = 2 ** len(spacing_mm)
    size = {1: _points, 2: _length, 3: _area}[len(spacing_mm)]
    corners = [tuple(code >> (n_corners - 1 - k) & 1 for k in range(n_corners)) for code in range(2**n_corners)]
    # What is inside and what is outside have one surface between them: with most corners inside, it is drawn around those outside.
    fewer = [c if sum(c) <= n_corners / 2 else tuple(1 - bit for bit in c) for c in corners]
    return np.array([size(c, spacing_mm) if any(c) else 0.0 for c in fewer])


def _points(corners: tuple[int, ...], spacing_mm: tuple[float, ...]) -> float:
    return 1.0


def _length(corners: tuple[int, ...], spacing_mm: tuple[float, ...]) -> float:
    """Length of the contour in a cell (y, x): it cuts each corner off by itself, or two neighbours together."""
    first, second, third, _ = corners
    y, x = spacing_mm
    if sum(corners) == 2 and first == second:
        return x
    if sum(corners) == 2 and first == third:
        return y
    return sum(corners) * float(np.hypot(y / 2, x / 2))


def _area(corners: tuple[int, ...], spacing_mm: tuple[float, ...]) -> float:
    from skimage.measure import marching_cubes, mesh_surface_area

    cell = np.array(corners, dtype=np.float64).reshape(2, 2, 2)
    vertices, faces, _, _ = marching_cubes(cell, 0.5, spacing=spacing_mm, method="lorensen")
    return float(mesh_surface_area(vertices, faces))
