"""Inputs that hypothesis chooses."""

from itertools import permutations, product

import numpy as np
from hypothesis import strategies as st

from segpipe.core.geometry import Grid, Orientation

ORIENTATIONS = [
    Orientation(axes, flips) for axes in permutations(range(3)) for flips in product((False, True), repeat=3)
]

orientations = st.sampled_from(ORIENTATIONS)
shapes = st.tuples(*[st.integers(2, 9)] * 3)
spacings = st.tuples(*[st.floats(0.3, 6.0)] * 3)


@st.composite
def grids(draw, shape=shapes):
    """Oblique grids: axes turned by up to 20 degrees about each world axis."""
    matrix = np.eye(3)[:, ::-1]
    for axis in range(3):
        angle = np.deg2rad(draw(st.floats(-20, 20)))
        turn = np.eye(3)
        i, j = [a for a in range(3) if a != axis]
        turn[i, i] = turn[j, j] = np.cos(angle)
        turn[i, j], turn[j, i] = -np.sin(angle), np.sin(angle)
        matrix = turn @ matrix
    affine = np.eye(4)
    affine[:3, :3] = matrix * np.array(draw(spacings))
    affine[:3, 3] = draw(st.tuples(*[st.floats(-200, 200)] * 3))
    return Grid.from_affine(draw(shape), affine)
