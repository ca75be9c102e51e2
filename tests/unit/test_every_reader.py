"""Whatever geometry an image has: segpipe reads it as the other programs do, and what it writes opens in them on the same grid."""

import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st

import segpipe
from segpipe.io.formats import (
    output_ending,
    read_header,
    read_volume,
    stem_of,
    write_labels_like,
    write_map_like,
    write_volume,
)
from tests.geometry import FLIP, by_itk, by_nibabel, corners, nifti, nrrd
from tests.strategies import ORIENTATIONS, grids, orientations

SHEAR = np.deg2rad(0.1)
NUMBERS = ("uint8", "int8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float32", "float64")


def affine_of(grid, shear=0.0, decimals=None):
    """Affine from (x, y, z), sheared, its cosines rounded."""
    affine = grid.affine @ FLIP
    cosines = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    cosines[:, 0] += np.tan(shear) * cosines[:, 1]
    if decimals is not None:
        cosines = np.round(cosines, decimals)
    affine[:3, :3] = cosines * sizes
    return affine


def assert_on(affine, shape, path, *, tolerance=1e-3):
    """Fail unless nibabel (for its formats) and SimpleITK open a file on this grid, within a share of its diagonal."""
    expected = corners(affine, shape)
    near = tolerance * np.linalg.norm(expected[-1] - expected[0]) + 1e-4
    for reader in [by_itk, *([by_nibabel] if ".nii" in path.name else [])]:
        found_shape, found = reader(path)
        assert tuple(found_shape) == tuple(shape)
        assert np.abs(found - expected).max() <= near, reader.__name__


@settings(deadline=None, max_examples=20)
@given(
    grid=grids(),
    orientation=orientations,
    shear=st.floats(-SHEAR, SHEAR),
    decimals=st.sampled_from([None, 3, 4, 5, 6, 7]),
    number=st.sampled_from(NUMBERS),
    unit=st.sampled_from(["mm", "micron", "meter"]),
    forms=st.sampled_from(["both", "sform", "qform"]),
    endian=st.sampled_from("<>"),
)
def test_nifti_of_any_geometry(tmp_path_factory, grid, orientation, shear, decimals, number, unit, forms, endian):
    folder = tmp_path_factory.mktemp("nifti")
    grid = grid.reoriented(orientation)
    affine, shape = affine_of(grid, shear, decimals), grid.shape[::-1]
    voxels = (np.arange(np.prod(shape)) % 100).reshape(shape).astype(number)
    path = nifti(folder / "a.nii", voxels, affine, forms=forms, unit=unit, endian=endian)
    volume = read_volume(path)
    np.testing.assert_array_equal(volume.array[0], voxels.T)
    np.testing.assert_array_equal(volume.array[0].T, np.asarray(nib.load(path).dataobj))
    seen = by_nibabel(path)[1]
    scale = np.linalg.norm(seen[-1] - seen[0])
    assert np.abs(corners(volume.grid.affine @ FLIP, shape) - seen).max() <= 2e-3 * scale
    write_labels_like(path, folder / "b.nii", np.ones(shape[::-1], dtype=np.uint8))
    assert_on(volume.grid.affine @ FLIP, shape, folder / "b.nii", tolerance=5e-3)
    try:
        itk = by_itk(path)[1]
    except RuntimeError:
        return  # Directions that ITK refuses: what is written has a qform as well, and opens.
    assert np.abs(by_itk(folder / "b.nii")[1] - itk).max() <= 1e-5 * scale + 1e-5
    if number != "int8" or endian == "<":
        np.testing.assert_array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(path))), voxels.T)


@settings(deadline=None, max_examples=15)
@given(
    grid=grids(),
    orientation=orientations,
    shear=st.floats(-SHEAR, SHEAR),
    decimals=st.integers(4, 9),
    number=st.sampled_from(NUMBERS),
    unit=st.sampled_from([None, "mm", "um", "m"]),
)
def test_nrrd_of_any_geometry(tmp_path_factory, grid, orientation, shear, decimals, number, unit):
    folder = tmp_path_factory.mktemp("nrrd")
    grid = grid.reoriented(orientation)
    affine, shape = affine_of(grid, shear), grid.shape[::-1]
    voxels = (np.arange(np.prod(shape)) % 100).reshape(shape).astype(number)
    path = nrrd(folder / "a.nrrd", voxels, affine, unit=unit, decimals=decimals)
    volume = read_volume(path)
    np.testing.assert_array_equal(volume.array[0], voxels.T)
    expected = corners(affine, shape)
    scale = np.linalg.norm(expected[-1] - expected[0]) + np.abs(affine[:3, 3]).max()
    assert np.abs(corners(volume.grid.affine @ FLIP, shape) - expected).max() <= 1e-3 * scale
    write_labels_like(path, folder / "b.nrrd", np.ones(shape[::-1], dtype=np.uint8))
    again = read_header(folder / "b.nrrd").grid
    assert np.abs(again.corners_mm() - volume.grid.corners_mm()).max() <= 1e-4 * scale
    np.testing.assert_allclose(by_itk(folder / "b.nrrd")[1], by_itk(path)[1], rtol=1e-4, atol=1e-4 * scale)


def _negative(header):
    header["pixdim"][1] = -header["pixdim"][1]


def _zero_rows(header):
    for axis in "xyz":
        header[f"srow_{axis}"] = 0


def _nan_rows(header):
    for axis in "xyz":
        header[f"srow_{axis}"] = np.nan


def _long_quaternion(header):
    header["quatern_b"], header["quatern_c"], header["quatern_d"] = 0, 1.0000003, 0


OBLIQUE = np.array([[0.9, 0.1, -0.2, 10], [-0.1, 1.1, 0.15, -20], [0.2, -0.1, 2.4, 5], [0, 0, 0, 1.0]])
LEFT, _, RIGHT = np.linalg.svd(OBLIQUE[:3, :3])
ROTATED = OBLIQUE.copy()
ROTATED[:3, :3] = LEFT @ RIGHT @ np.diag([0.9, 1.1, 2.4])
LEANING = ROTATED.copy()
LEANING[:3, 2] += np.tan(np.deg2rad(0.45)) * LEANING[:3, 1]
ROUNDED = ROTATED.copy()
ROUNDED[:3, :3] = np.round(LEFT @ RIGHT, 3) * [0.9, 1.1, 2.4]
TURNED = np.diag([-1.0, 1.1, -2.4, 1.0])
SHAPE = (5, 6, 4)
VOXELS = (np.arange(120) % 90).reshape(SHAPE).astype(np.int16)
QUIRKS = {
    "plain": {"affine": ROTATED},
    "sform alone": {"affine": ROTATED, "forms": "sform"},
    "leaning": {"affine": LEANING, "forms": "sform"},
    "leaning, both": {"affine": LEANING},
    "rounded": {"affine": ROUNDED, "forms": "sform"},
    "negative pixdim": {"affine": ROTATED, "change": _negative},
    "negative pixdim, leaning": {"affine": LEANING, "forms": "sform", "change": _negative},
    "broken sform": {"affine": ROTATED, "change": _zero_rows},
    "NaN sform": {"affine": ROTATED, "change": _nan_rows},
    "long quaternion": {"affine": TURNED, "forms": "qform", "change": _long_quaternion},
    "microns": {"affine": LEANING, "forms": "sform", "unit": "micron"},
    "NIfTI-2": {"affine": LEANING, "klass": nib.Nifti2Image},
    "big endian": {"affine": ROUNDED, "forms": "sform", "endian": ">"},
}


def source(folder, ending, quirk):
    """An image with a quirk, in a format."""
    how = dict(QUIRKS[quirk])
    affine = how.pop("affine")
    path = folder / f"a{ending}"
    if ending in (".nii", ".nii.gz"):
        return nifti(path, VOXELS, affine, **how), affine
    if ending == ".hdr":
        return nifti(
            folder / "a.img", VOXELS, affine, klass=nib.Nifti1Pair, forms=how.get("forms", "both")
        ) and path, affine
    if ending == ".mgz":
        nib.save(nib.MGHImage(VOXELS, affine), path)
        return path, affine
    if ending == ".nrrd":
        return nrrd(path, VOXELS, affine), affine
    image = sitk.ReadImage(str(nrrd(folder / "tmp.nrrd", VOXELS, affine)))
    sitk.WriteImage(image, str(path))
    return path, affine


CASES = [
    *(
        (ending, quirk)
        for ending in (".nii", ".nii.gz", ".hdr")
        for quirk in QUIRKS
        if (ending, quirk) != (".hdr", "NIfTI-2")
    ),
    *(
        (ending, quirk)
        for ending in (".mgz", ".nrrd", ".nhdr", ".mha", ".mhd")
        for quirk in ("plain", "leaning", "rounded")
    ),
]


@pytest.mark.parametrize(("ending", "quirk"), CASES)
def test_what_is_written_for_an_image_opens_on_its_grid(tmp_path, ending, quirk):
    path, affine = source(tmp_path, ending, quirk)
    np.testing.assert_array_equal(read_volume(path).array[0], VOXELS.T)
    np.testing.assert_allclose(read_header(path).grid.affine @ FLIP, affine, rtol=1e-3, atol=1e-3)
    labels = np.ones(SHAPE[::-1], dtype=np.uint8)
    mask, chart = tmp_path / f"mask{output_ending(path)}", tmp_path / "map.nii.gz"
    write_labels_like(path, mask, labels)
    write_map_like(path, chart, labels.astype(np.float32))
    again = tmp_path / f"again{output_ending(mask)}"
    write_labels_like(mask, again, labels)
    for written in (mask, chart, again):
        if quirk == "negative pixdim":
            # SimpleITK mirrors the image itself, and what is written for it alike: see below.
            assert np.abs(by_nibabel(written)[1] - corners(affine, SHAPE)).max() < 1e-3
        else:
            # A lean of 0.45 degrees over the whole image.
            assert_on(affine, SHAPE, written, tolerance=8e-3)
        assert np.abs(read_header(written).grid.affine @ FLIP - affine).max() < 1e-3
    if ending in (".nii", ".nii.gz") and quirk not in ("NIfTI-2", "NaN sform"):
        try:
            seen = by_itk(path)[1]
        except RuntimeError:
            return
        assert np.abs(by_itk(mask)[1] - seen).max() < 1e-4


@pytest.mark.parametrize("lean", [0, 0.003, 0.01, 0.1, 0.45])
@pytest.mark.parametrize("decimals", [None, 3, 5])
@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd", ".mha"])
def test_a_new_volume_opens_on_its_grid(tmp_path, lean, decimals, ending):
    """Volumes of DICOM series, phantoms, maps: no header to copy."""
    grid = read_header(nrrd(tmp_path / "a.nrrd", VOXELS, ROTATED)).grid
    affine = affine_of(grid, np.deg2rad(lean), decimals)
    written = tmp_path / f"b{ending}"
    write_volume(written, VOXELS.T, type(grid).from_affine(VOXELS.T.shape, affine @ FLIP))
    assert_on(affine, SHAPE, written, tolerance=8e-3)
    assert np.abs(read_header(written).grid.affine @ FLIP - affine).max() < 1e-3


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_every_orientation_is_written(tmp_path, orientation):
    grid = read_header(nrrd(tmp_path / "a.nrrd", VOXELS, ROTATED)).grid.reoriented(orientation)
    write_volume(tmp_path / "b.nii", np.zeros(grid.shape, dtype=np.uint8), grid)
    assert_on(grid.affine @ FLIP, grid.shape[::-1], tmp_path / "b.nii")


WRITERS = {
    "workflows/compare/command.py", "inference/outputs.py", "inference/run.py", "postprocessing/run.py", "dataset/convert.py",
    "dataset/phantoms.py",
}  # fmt: skip
"""Whatever writes images: each by one of the three functions that are tried here."""


def test_nothing_writes_images_by_itself():
    root = Path(segpipe.__file__).parent
    texts = {str(f.relative_to(root)): f.read_text(encoding="utf-8") for f in root.rglob("*.py")}
    writing = re.compile(
        r"\b(write_volume|write_labels_like|write_map_like|volume_written|labels_written_like|map_written_like)\("
    )
    assert {name for name, text in texts.items() if writing.search(text) and not name.startswith("io/")} == WRITERS
    alone = re.compile(r"\b(sitk\.WriteImage|nibabel\.save|nib\.save|to_filename)\(")
    assert {name for name, text in texts.items() if alone.search(text)} <= {"io/itk.py", "io/image2d.py"}


def test_voxel_sizes_are_copied_to_the_bit(tmp_path):
    def nearly(header):
        header["pixdim"][1:4] *= np.float32(1.0005)

    path = nifti(tmp_path / "a.nii", VOXELS, LEANING, forms="sform", change=nearly)
    write_labels_like(path, tmp_path / "b.nii", np.ones(SHAPE[::-1], dtype=np.uint8))
    before, after = (nib.load(p).header for p in (path, tmp_path / "b.nii"))
    assert after["qform_code"] == 1
    np.testing.assert_array_equal(after["pixdim"][1:], before["pixdim"][1:])
    np.testing.assert_array_equal(after["srow_x"], before["srow_x"])


@pytest.mark.data
def test_a_real_series_with_rounded_positions_opens_everywhere(data, tmp_path):
    (series,) = segpipe.convert(data / "odd2" / "ge_rounded_positions", tmp_path)
    shape, seen = by_nibabel(series.output)
    assert np.abs(by_itk(series.output)[1] - seen).max() < 0.1
    assert shape[2] == 20


def test_an_image_without_a_position_keeps_having_none(tmp_path):
    path = nifti(tmp_path / "a.nii", VOXELS, ROTATED, forms="none")
    assert not read_header(path).grid.placed
    write_labels_like(path, tmp_path / "b.nii", np.ones(SHAPE[::-1], dtype=np.uint8))
    for reader in (by_itk, by_nibabel):
        np.testing.assert_allclose(reader(tmp_path / "b.nii")[1], reader(path)[1], atol=1e-6)


def test_formats_that_are_only_read_are_not_written(tmp_path):
    path = nrrd(tmp_path / "a.nrrd", VOXELS, ROTATED)
    for ending in (".mgz", ".hdr"):
        with pytest.raises(segpipe.SegpipeError, match=f"{ending}: cannot be written"):
            write_volume(tmp_path / f"b{ending}", VOXELS.T, read_header(path).grid)
    assert stem_of(tmp_path / "CT.seg.nii.gz") == "CT"
