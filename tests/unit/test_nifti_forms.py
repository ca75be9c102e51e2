"""Which part of a NIfTI header is believed, for headers that contradict themselves; and grids of the files of one case."""

import json
import logging
import re

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from nibabel.eulerangles import euler2mat

import segpipe
from segpipe.core.geometry import Grid, orientation_onto
from segpipe.core.volume import Volume
from segpipe.dataset.check import label_problems, value_counts
from segpipe.dataset.grids import LabelFile, onto_axes_of, require_same_grid
from segpipe.dataset.load import load_image, read_label_file
from segpipe.errors import GeometryMismatchError, UnreadableFileError
from segpipe.io import formats
from segpipe.io.formats import header_notes, header_warnings, read_header, read_volume, write_labels_like
from tests.geometry import FLIP, nifti
from tests.strategies import ORIENTATIONS

VOXELS = np.random.default_rng(0).integers(1, 100, (7, 6, 5)).astype(np.int16)
AFFINE = np.diag([1.0, 1.2, 1.5, 1.0])
AFFINE[:3, 3] = (-20, 15, -30)
HALF_TURN = np.diag([-1.0, 1.2, -1.5, 1.0])


def fields(**values):
    def change(header):
        for name, value in values.items():
            header[name] = value

    return change


def rows(value):
    return fields(**{f"srow_{axis}": value for axis in "xyz"})


def sizes(*pixdim):
    def change(header):
        header["pixdim"][1:4] = pixdim

    return change


LONG = {"quatern_b": 0, "quatern_c": 1.0000003, "quatern_d": 0}
NO_ROTATION = {"quatern_b": 0.6, "quatern_c": 0.6, "quatern_d": 0.6}


@pytest.mark.parametrize(
    ("how", "affine", "severity", "message"),
    [
        ({"forms": "qform", "change": fields(**LONG)}, HALF_TURN, "note", "longer than 1 by rounding"),
        ({"change": fields(**NO_ROTATION)}, AFFINE, "warning", r"no rotation \(.*is 1\.08.*the sform is believed"),
        ({"change": fields(quatern_b=np.nan)}, AFFINE, "warning", "no rotation.*the sform is believed"),
        ({"change": rows(0)}, AFFINE, "warning", "the sform cannot be used.*the qform is believed"),
        ({"change": rows(np.nan)}, AFFINE, "warning", "the sform cannot be used.*the qform is believed"),
        ({"change": sizes(1, 1.2, np.nan)}, AFFINE, "warning", "pixdim says voxels of 1 x 1.2 x nan"),
        ({"change": sizes(2, 2.4, 3)}, None, "warning", "sform says voxels of 1 x 1.2 x 1.5.*pixdim is believed"),
        ({"change": sizes(1.004, 1.2, 1.5)}, None, "note", "sform says voxels of 1 x 1.2 x 1.5.*pixdim is believed"),
    ],
)
def test_what_is_believed_of_a_header_that_contradicts_itself(tmp_path, how, affine, severity, message):
    path = nifti(tmp_path / "a.nii", VOXELS, HALF_TURN if how.get("forms") else AFFINE, **how)
    np.testing.assert_array_equal(read_volume(path).array[0], VOXELS.T)
    if affine is not None:
        np.testing.assert_allclose(read_header(path).grid.affine @ FLIP, affine, atol=1e-5)
    assert [n for n in header_notes(path) if n.severity == severity and re.search(message, n.message)]
    assert bool(header_warnings([path])) == (severity == "warning")


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"forms": "qform", "change": fields(**NO_ROTATION)}, "the qform is no rotation"),
        ({"forms": "qform", "change": sizes(1, 0, 1)}, "the qform has no voxel sizes"),
        ({"forms": "sform", "change": rows(0)}, "the sform cannot be used"),
        ({"change": lambda h: (rows(0)(h), fields(**NO_ROTATION)(h))}, "the sform cannot be used.*; the qform is no rotation"),
    ],
)  # fmt: skip
def test_a_header_of_which_nothing_can_be_believed_is_refused(tmp_path, how, message):
    with pytest.raises(UnreadableFileError, match=message):
        read_volume(nifti(tmp_path / "a.nii", VOXELS, AFFINE, **how))


def test_a_mask_of_an_image_with_a_broken_form_is_opened_by_nibabel(tmp_path):
    for name, how in {"long": {"forms": "qform", "change": fields(**LONG)}, "rows": {"change": rows(np.nan)}}.items():
        path = nifti(tmp_path / f"{name}.nii", VOXELS, HALF_TURN, **how)
        write_labels_like(path, tmp_path / f"{name}_mask.nii", np.ones(VOXELS.T.shape, dtype=np.uint8))
        np.testing.assert_allclose(nib.load(tmp_path / f"{name}_mask.nii").affine, HALF_TURN, atol=2e-3)


def test_no_header_keeps_its_notes_from_being_listed(tmp_path, monkeypatch):
    path = nifti(tmp_path / "a.nii", VOXELS, AFFINE)
    monkeypatch.setattr("segpipe.io.nifti.notes_of", lambda stored: 1 / 0)
    (note,) = formats.header_notes(path)
    assert note.severity == "warning"
    assert "could not be found out" in note.message


def test_libraries_say_nothing(tmp_path, capfd, caplog):
    path = nifti(tmp_path / "a.nii", VOXELS, AFFINE, change=lambda h: (sizes(-1, 0, 1.5)(h), fields(bitpix=3)(h)))
    with caplog.at_level(logging.DEBUG):
        read_volume(path)
        header_notes(path)
        write_labels_like(path, tmp_path / "b.nii", np.ones(VOXELS.T.shape, dtype=np.uint8))
    assert capfd.readouterr() == ("", "")
    assert not caplog.records


def oblique(angle):
    affine = np.eye(4)
    affine[:3, :3] = euler2mat(0, 0, angle) @ np.diag([1, 1.2, 1.5])
    return affine


def test_a_pair_at_45_degrees_is_one_grid(tmp_path):
    image = nifti(tmp_path / "i.nii", VOXELS, oblique(np.pi / 4 + 1e-5))
    second = nifti(tmp_path / "s.nii", VOXELS + 1, oblique(np.pi / 4 - 1e-5))
    loaded = load_image("a", [image, second], ("T1", "T2"))
    np.testing.assert_array_equal(loaded.volume.array[1], loaded.volume.array[0] + 1)
    label = onto_axes_of("a", "image", loaded.stored_grid, "label", read_label_file("a", second))
    np.testing.assert_array_equal(loaded.orientation.apply(label.array), loaded.volume.array[1])
    assert label.notes == ()


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("angle", [0, 0.3, np.pi / 4])
def test_a_mask_in_any_order_of_axes_is_found(orientation, angle):
    grid = Grid.from_affine((5, 6, 7), oblique(angle) @ FLIP)
    image = Volume(VOXELS.T[None], grid)
    label = image.reoriented(orientation)
    assert orientation_onto(grid, label.grid) == orientation.inverse()
    np.testing.assert_array_equal(onto_axes_of("a", "image", grid, "label", LabelFile(label)).array, VOXELS.T)


def test_a_label_made_by_itk_from_an_image_without_a_position(tmp_path):
    image = nifti(tmp_path / "i.nii", VOXELS, AFFINE, forms="none")
    drawn = sitk.GetImageFromArray((VOXELS.T > 50).astype(np.uint8))
    drawn.CopyInformation(sitk.ReadImage(str(image)))
    sitk.WriteImage(drawn, str(tmp_path / "l.nii.gz"))
    loaded = load_image("a", [image], ("T1",))
    label = onto_axes_of("a", "image", loaded.stored_grid, "label", read_label_file("a", tmp_path / "l.nii.gz"))
    np.testing.assert_array_equal(label.array, VOXELS.T > 50)
    assert "image states no position" in label.notes[0].message
    other = nifti(tmp_path / "o.nii", VOXELS, np.diag([1.0, 1.2, 3, 1]))
    with pytest.raises(GeometryMismatchError, match="assumed: its header states no position"):
        onto_axes_of("a", "image", loaded.stored_grid, "label", read_label_file("a", other))


@pytest.mark.parametrize("lost", [np.eye(4), np.diag([-1.0, -1, 1, 1])])
def test_a_lost_header_is_to_be_copied_not_resampled(tmp_path, lost):
    image, label = (read_header(nifti(tmp_path / f"{n}.nii", VOXELS, a)).grid for n, a in (("i", AFFINE), ("l", lost)))
    with pytest.raises(GeometryMismatchError, match=r"header of label seems to be lost .*copy that of image"):
        require_same_grid("a", "image", image, "label", label)
    moved = AFFINE.copy()
    moved[0, 3] += 5
    with pytest.raises(GeometryMismatchError, match="resample one onto the other"):
        require_same_grid("a", "image", image, "label", read_header(nifti(tmp_path / "m.nii", VOXELS, moved)).grid)


def test_a_label_without_a_position_is_not_guessed(tmp_path):
    image = read_header(nifti(tmp_path / "i.nii", VOXELS, AFFINE)).grid
    label = read_label_file("a", nifti(tmp_path / "l.nii", VOXELS, AFFINE, forms="none"))
    with pytest.raises(GeometryMismatchError, match="header of label seems to be lost"):
        onto_axes_of("a", "image", image, "label", label)


@pytest.mark.parametrize("largest", [2, 3, 4, 5, 7, 13, 29, 100])
@pytest.mark.parametrize("kind", [np.uint8, np.int16])
def test_labels_that_nibabel_scaled_are_whole(tmp_path, largest, kind):
    labels = VOXELS % 3 % 2 + (VOXELS > 90) * (largest - 1.0)
    header = nib.Nifti1Header()
    header.set_data_dtype(kind)
    nib.save(nib.Nifti1Image(labels, AFFINE, header), tmp_path / "l.nii.gz")
    read = read_label_file("a", tmp_path / "l.nii.gz")
    np.testing.assert_array_equal(read.volume.array[0], labels.T)
    assert not label_problems(value_counts(read.volume.array), None)


@pytest.mark.parametrize(("off", "whole"), [(1e-7, True), (9e-4, True), (2e-3, False), (0.4, False), (np.nan, False)])
def test_values_that_are_nearly_whole_are_made_whole(tmp_path, off, whole):
    labels = np.ones((4, 4, 4), dtype=np.float32)
    labels[0, 0, 0] += off
    read = read_label_file("a", nifti(tmp_path / "l.nii", labels, AFFINE))
    assert bool(np.isfinite(read.volume.array).all() and (read.volume.array == 1).all()) == whole
    assert bool(read.notes) == (whole and np.float32(1 + off) != 1)


def test_a_scaling_too_coarse_to_tell_is_not_rounded(tmp_path):
    header = nib.Nifti1Header()
    header.set_data_dtype(np.uint8)
    labels = np.zeros((4, 4, 4))
    labels[0], labels[1] = 200, 2
    nib.save(nib.Nifti1Image(labels, AFFINE, header), tmp_path / "l.nii")
    read = read_label_file("a", tmp_path / "l.nii")
    (rule, message), *_ = label_problems(value_counts(read.volume.array), None)
    assert rule == "non-integer labels"
    assert "scaling in the header" in message


def test_refused_values_have_all_their_digits_and_nan_its_name():
    problems = dict(label_problems({1.00200001: 3, float("nan"): 2, 0.0: 5}, None))
    assert "1.00200001" in problems["non-integer labels"]
    assert "2 voxel(s) are NaN" in problems["non-finite labels"]


def test_what_check_finds_in_labels_is_listed(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    outside = VOXELS.astype(np.float32)
    outside[:, :, [0, -1]] = np.nan
    for case, voxels, label, affine in (
        ("near", VOXELS, (VOXELS > 50) + np.float32(1e-4), AFFINE),
        ("outside", outside, VOXELS > 50, AFFINE),
        ("factor", VOXELS, VOXELS > 50, AFFINE),
    ):
        change = sizes(2, 2.4, 3) if case == "factor" else None
        nifti(tmp_path / "images" / f"{case}.nii", voxels, affine, change=change)
        nifti(tmp_path / "labels" / f"{case}.nii", label.astype(np.float32), affine, change=change)
    (tmp_path / "dataset.json").write_text(
        json.dumps({"channel_names": {"0": "MR"}, "labels": {"background": 0, "x": 1}}), encoding="utf-8"
    )
    found = segpipe.check(tmp_path, work=tmp_path.parent / f"{tmp_path.name}_work", jobs=1).findings
    by_case = {f.case: f for f in found}
    assert (by_case["near"].severity, by_case["near"].rule) == ("note", "label file")
    assert "all corners are NaN" in by_case["outside"].message
    assert (by_case["factor"].severity, by_case["factor"].rule) == ("warning", "header")
