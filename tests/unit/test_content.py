import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segpipe.core.geometry import Orientation
from segpipe.core.volume import Volume
from segpipe.dataset.content import image_digest
from segpipe.dataset.load import load_image
from segpipe.io.formats import write_volume
from tests.phantoms import axis_grid
from tests.strategies import grids, orientations

GRID = axis_grid((3, 4, 5), spacing=(2.5, 0.7, 0.9))
VOXELS = np.random.default_rng(0).integers(-900, 900, GRID.shape).astype(np.int16)


def digest_of(path):
    loaded = load_image("a", [path], ("CT",)).volume
    return image_digest(loaded.array, loaded.grid.spacing_mm)


def stored(path, voxels=VOXELS, grid=GRID, orientation=None):
    volume = Volume(voxels[None], grid).reoriented(orientation or Orientation())
    write_volume(path, volume.array[0], volume.grid)
    return path


@pytest.mark.parametrize("ending", [".nii", ".nii.gz", ".nrrd", ".mha", ".mhd"])
@pytest.mark.parametrize("kind", [np.int16, np.int32, np.float32, np.float64])
def test_one_image_has_one_digest_in_every_format_and_type(tmp_path, ending, kind):
    assert digest_of(stored(tmp_path / f"b{ending}", VOXELS.astype(kind))) == image_digest(
        VOXELS[None], GRID.spacing_mm
    )


@given(orientations)
def test_the_order_of_storage_does_not_matter(tmp_path_factory, orientation):
    path = tmp_path_factory.mktemp("order") / "a.nii"
    assert digest_of(stored(path, orientation=orientation)) == image_digest(VOXELS[None], GRID.spacing_mm)


@settings(deadline=None, max_examples=15)
@given(grids())
def test_formats_that_round_a_spacing_agree(tmp_path_factory, grid):
    folder = tmp_path_factory.mktemp("round")
    voxels = np.arange(np.prod(grid.shape), dtype=np.float32).reshape(grid.shape)
    assert digest_of(stored(folder / "a.nii", voxels, grid)) == digest_of(stored(folder / "a.nrrd", voxels, grid))


def test_one_voxel_more_makes_another_digest():
    other = VOXELS.copy()
    other[1, 2, 3] += 1
    assert image_digest(other[None], GRID.spacing_mm) != image_digest(VOXELS[None], GRID.spacing_mm)


@given(st.integers(0, 2), st.sampled_from([0.99, 1.002, 2]))
def test_another_spacing_makes_another_digest(axis, factor):
    spacing = list(GRID.spacing_mm)
    spacing[axis] *= factor
    assert image_digest(VOXELS[None], tuple(spacing)) != image_digest(VOXELS[None], GRID.spacing_mm)


def test_the_same_bytes_in_another_shape_are_another_image():
    assert image_digest(VOXELS.reshape(1, 3, 5, 4), (1, 1, 1)) != image_digest(VOXELS.reshape(1, 3, 4, 5), (1, 1, 1))


def test_zeros_and_nans_have_one_sign():
    first = np.array([0.0, np.nan, 1.0], dtype=np.float32).reshape(1, 1, 1, 3)
    assert image_digest(first, (1, 1, 1)) == image_digest(-first * [1, 1, -1], (1, 1, 1))
