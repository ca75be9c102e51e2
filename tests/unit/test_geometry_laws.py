import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segpipe.core.geometry import Grid, canonical_orientation, largest_displacement_mm, resampled_shape, same_grid
from tests.strategies import ORIENTATIONS, grids, orientations


def test_there_are_48_orientations():
    assert len({(o.axes, o.flips) for o in ORIENTATIONS}) == 48


@given(grids(), orientations)
def test_reorienting_and_back_is_the_identity(grid, orientation):
    array = np.arange(np.prod(grid.shape)).reshape(grid.shape)
    there = orientation.apply(array)
    np.testing.assert_array_equal(orientation.inverse().apply(there), array)
    back = grid.reoriented(orientation).reoriented(orientation.inverse())
    assert back.shape == grid.shape
    assert largest_displacement_mm(back, grid) < 1e-6


@given(grids(), orientations, st.data())
def test_a_voxel_keeps_its_place_in_the_world(grid, orientation, data):
    index = tuple(data.draw(st.integers(0, n - 1)) for n in grid.shape)
    array = np.zeros(grid.shape, dtype=bool)
    array[index] = True
    moved = np.argwhere(orientation.apply(array))[0]
    np.testing.assert_allclose(
        grid.reoriented(orientation).position_mm(tuple(moved)), grid.position_mm(index), atol=1e-6
    )


@given(grids(), orientations)
def test_canonical_is_the_same_from_every_orientation(grid, orientation):
    first = grid.reoriented(canonical_orientation(grid))
    stored = grid.reoriented(orientation)
    second = stored.reoriented(canonical_orientation(stored))
    assert first.axis_codes == second.axis_codes == "SAR"
    assert largest_displacement_mm(first, second) < 1e-6


@given(grids())
def test_affine_round_trip(grid):
    again = Grid.from_affine(grid.shape, grid.affine)
    np.testing.assert_allclose(again.affine, grid.affine, atol=1e-9)
    assert same_grid(again, grid)


def test_half_a_voxel_rounds_to_even():
    assert resampled_shape((5, 3, 4), (1.0, 1.0, 1.0), (2.0, 2.0, 1.0)) == (2, 2, 4)


def test_a_singular_affine_is_refused():
    with pytest.raises(ValueError, match="singular"):
        Grid.from_affine(
            (2, 2, 2), np.array([[1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]) + np.diag([0, 1e-9, 0, 0])
        )


def test_a_moved_grid_is_another_grid():
    grid = Grid.from_affine((4, 4, 4), np.eye(4))
    moved = np.eye(4)
    moved[0, 3] = 0.11
    assert not same_grid(grid, Grid.from_affine((4, 4, 4), moved))
    moved[0, 3] = 0.09
    assert same_grid(grid, Grid.from_affine((4, 4, 4), moved))


@given(grids(), orientations, orientations)
def test_one_orientation_then_another_is_one(grid, first, second):
    array = np.arange(np.prod(grid.shape)).reshape(grid.shape)
    np.testing.assert_array_equal(first.then(second).apply(array), second.apply(first.apply(array)))
