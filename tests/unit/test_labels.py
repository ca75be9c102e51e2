"""Declarations of labels, one-hot and multi-rater files, and channels on other grids."""

import json

import nibabel as nib
import numpy as np
import pytest

import segpipe
from segpipe.core.labels import Labels
from segpipe.core.volume import Volume
from segpipe.core.workspace import PreparedFiles, Workspace
from segpipe.dataset.declared import read_labels_declaration
from segpipe.dataset.fingerprint.schema import Fingerprint
from segpipe.dataset.load import load_image, onto_grid, read_labels
from segpipe.errors import CaseError, DatasetError, GeometryMismatchError
from segpipe.io.arrays import read_array
from segpipe.io.formats import read_volume, write_volume
from tests.phantoms import axis_grid, cube_case, write_case, write_small_dataset
from tests.strategies import ORIENTATIONS

GRID = axis_grid((4, 5, 6))
BRATS = {
    "labels": {"background": 0, "whole": [1, 2, 4], "core": [1, 4], "enhancing": 4},
    "regions_class_order": [2, 1, 4],
}


def test_regions_as_nnunet_declares_them():
    labels = read_labels_declaration(BRATS)
    assert labels.regions
    assert labels.names == ("whole", "core", "enhancing")
    assert labels.values == (0, 1, 2, 4)
    assert labels.members == ((1, 2, 3), (1, 3), (3,))
    assert (labels.n_outputs, labels.n_entries) == (3, 4)
    np.testing.assert_array_equal(labels.written(np.array([0, 1, 2, 3])), [0, 2, 1, 4])
    np.testing.assert_array_equal(labels.indices_of(np.array([4, 2, 0, 1])), [3, 2, 0, 1])
    assert labels.describe() == "whole = 1 + 2 + 4, core = 1 + 4, enhancing = 4"


def test_sparse_annotation_as_the_3d_unet_has_it():
    """0 is not labelled, 1 the background: the background need not be 0."""
    labels = read_labels_declaration({"labels": {"ignore": 0, "background": 1, "tubule": 2}})
    assert (labels.background, labels.ignore, labels.values, labels.n_outputs) == (1, 0, (1, 2), 2)
    np.testing.assert_array_equal(labels.indices_of(np.array([0, 1, 2])), [2, 0, 1])
    np.testing.assert_array_equal(labels.written(np.array([0, 1])), [1, 2])


def test_the_entry_of_value_0_is_the_background_whatever_its_name():
    labels = read_labels_declaration({"labels": {"0": "clear", "1": "x"}})
    assert (labels.background, labels.names, labels.n_entries) == (0, ("x",), 2)


def one_hot(path, channels):
    nib.save(nib.Nifti1Image(np.stack(channels, axis=-1).astype(np.uint8), np.eye(4)), path)
    return path


def test_one_hot_files_become_label_values(tmp_path):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, (6, 5, 4))
    declared = Labels.plain({"a": 7, "b": 130})
    with_background = one_hot(tmp_path / "a.nii.gz", [labels == k for k in range(3)])
    without = one_hot(tmp_path / "b.nii.gz", [labels == k for k in (1, 2)])
    expected = np.array([0, 7, 130])[labels].T
    for path in (with_background, without):
        np.testing.assert_array_equal(read_labels("c", path, declared).array[0], expected)
        with pytest.raises(CaseError, match="declare the labels"):
            read_labels("c", path)
    with pytest.raises(
        CaseError, match=r"2 channels; expected one for each of the declared values \[0, 1, 2, 3\], with or without"
    ):
        read_labels("c", without, Labels.plain({"a": 1, "b": 2, "c": 3}))


def test_several_raters_are_refused_with_advice(tmp_path):
    labels = np.random.default_rng(0).integers(0, 3, (6, 5, 4))
    with pytest.raises(CaseError, match=r"several raters.*majority vote, or STAPLE"):
        read_labels("c", one_hot(tmp_path / "a.nii.gz", [labels, labels]))
    with pytest.raises(CaseError, match=r"\d+ voxels belong to several of them: if they are raters.*declare regions"):
        read_labels("c", one_hot(tmp_path / "b.nii.gz", [labels > 0, labels > 1]))
    write_small_dataset(tmp_path / "d", n_cases=1)
    row = "images/case_0.nii.gz,labels/case_0.nii.gz,labels/case_0.nii.gz"
    (tmp_path / "d" / "list.csv").write_text(f"case,image,label,label_2\na,{row}\n", encoding="utf-8")
    (finding,) = segpipe.check(tmp_path / "d" / "list.csv", work=tmp_path / "w", jobs=1).findings
    assert (finding.rule, finding.case) == ("several raters", "a")


def test_whole_numbers_stored_as_floats_are_labels(tmp_path):
    labels = np.zeros((6, 5, 4), dtype=np.float32)
    labels[2:4] = 41
    nib.save(nib.Nifti1Image(labels, np.eye(4)), tmp_path / "a.nii.gz")
    assert set(np.unique(read_labels("c", tmp_path / "a.nii.gz").array)) == {0, 41}


def two_channels(folder, second_grid, second=None):
    """One case whose second channel lies on another grid."""
    image, labels = cube_case(np.random.default_rng(0))
    grid = axis_grid(image.shape)
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True)
    write_volume(folder / "imagesTr" / "a_0000.nii.gz", image, grid)
    write_volume(folder / "imagesTr" / "a_0001.nii.gz", image if second is None else second, second_grid)
    write_volume(folder / "labelsTr" / "a.nii.gz", labels, grid)
    return image, grid


def test_channels_on_other_grids_are_refused_or_resampled(tmp_path):
    fine = axis_grid((32, 40, 48), spacing=(1.0, 0.75, 0.5), origin=(9.75, -20.375, 4.5))
    coarse_x = np.linspace(0, 47, 48)
    ramp = np.broadcast_to(9.75 + 0.5 * coarse_x, (32, 40, 48)).astype(np.float32)
    _, grid = two_channels(tmp_path / "d", fine, ramp)
    result = segpipe.check(tmp_path / "d", work=tmp_path / "w", jobs=1)
    assert [f.rule for f in result.findings] == ["different grids"]
    assert "--resample-channels" in result.findings[0].message
    assert not [
        f
        for f in segpipe.check(tmp_path / "d", work=tmp_path / "w", resample_channels=True, jobs=1).findings
        if f.severity == "error"
    ]
    paths = [tmp_path / "d" / "imagesTr" / f"a_000{i}.nii.gz" for i in (0, 1)]
    loaded = load_image("a", paths, ("one", "two"), resample_channels=True).volume
    assert loaded.grid.shape == grid.shape
    # The second channel holds each voxel's own x in mm: so it must on the first one's grid, away from its borders.
    expected = 10.0 + 1.0 * np.arange(24)
    np.testing.assert_allclose(loaded.array[1, 8, 10, 2:-2], expected[2:-2], atol=1e-3)


def test_the_choice_is_kept_for_the_later_stages_and_the_model(tmp_path):
    two_channels(tmp_path / "d", axis_grid((16, 20, 24), origin=(10.3, -20.0, 5.0)))
    made = segpipe.plan(tmp_path / "d", work=tmp_path / "w", resample_channels=True, jobs=1)
    assert made.resample_channels
    assert segpipe.preprocess(tmp_path / "d", work=tmp_path / "w", jobs=1).cases == ("a",)


def test_a_channel_of_another_part_of_the_body_is_refused(tmp_path):
    two_channels(tmp_path / "d", axis_grid((16, 20, 24), origin=(10, -20, 35)))
    paths = [tmp_path / "d" / "imagesTr" / f"a_000{i}.nii.gz" for i in (0, 1)]
    with pytest.raises(GeometryMismatchError, match=r"a_0001\.nii\.gz covers \d+% of the first channel's grid"):
        load_image("a", paths, ("one", "two"), resample_channels=True)


def test_a_missing_channel_is_named_with_its_case_even_when_it_is_the_first(tmp_path):
    for case in ("a", "b", "c"):
        image, labels = cube_case(np.random.default_rng(ord(case)))
        for channel in range(1 if case == "a" else 2):
            write_volume(tmp_path / "d/imagesTr" / f"{case}_000{channel}.nii.gz", image, axis_grid(image.shape))
        write_volume(tmp_path / "d/labelsTr" / f"{case}.nii.gz", labels, axis_grid(image.shape))
    (finding,) = segpipe.check(tmp_path / "d", work=tmp_path / "w", jobs=1).findings
    assert (finding.case, finding.rule) == ("a", "channels")
    assert "1 channel(s) in a_0000.nii.gz; expected 2" in finding.message


def test_a_4d_file_holds_channels(tmp_path):
    image, labels = cube_case(np.random.default_rng(0))
    write_case(tmp_path / "d", "a", image, labels, axis_grid(image.shape))
    stored = nib.load(tmp_path / "d/images/a.nii.gz")
    four = np.stack([image.T, image.T * 2, image.T + 5], axis=-1)
    nib.save(nib.Nifti1Image(four, stored.affine), tmp_path / "d/images/a.nii.gz")
    segpipe.preprocess(tmp_path / "d", work=tmp_path / "w", jobs=1)
    assert Fingerprint.read(Workspace(tmp_path / "w").fingerprint).channel_names == (
        "channel_0",
        "channel_1",
        "channel_2",
    )


def test_ignored_voxels_reach_the_arrays_and_no_measurement(tmp_path):
    folder = write_small_dataset(
        tmp_path / "d", n_cases=2, values=(1, 2), names={"background": 0, "a": 1, "b": 2, "ignore": 9}
    )
    path = folder / "labels" / "case_0.nii.gz"
    volume = read_volume(path)
    sparse = volume.array[0].copy()
    sparse[np.arange(len(sparse)) % 4 != 2] = 9
    write_volume(path, sparse, volume.grid)
    work = Workspace(tmp_path / "w")
    made = segpipe.plan(folder, work=work.root, jobs=1)
    segpipe.preprocess(folder, work=work.root, jobs=1)
    assert made.labels.ignore == 9
    case = next(c for c in Fingerprint.read(work.fingerprint).cases if c.case == "case_0")
    assert case.label_voxels == {v: int((sparse == v).sum()) for v in (1, 2)}
    files = PreparedFiles(work.preprocessed("3d_fullres") / "case_0")
    np.testing.assert_array_equal(read_array(files.segmentation) == 3, sparse == 9)
    rows = read_array(files.foreground)
    segmentation = read_array(files.segmentation)
    assert not (segmentation[tuple(rows[:, 1:].T)] == 3).any()
    assert (rows[:, 0] == 0).sum() == (sparse != 9).sum()


def test_a_case_in_which_nothing_is_labelled_is_left_out(tmp_path):
    folder = write_small_dataset(tmp_path / "d", n_cases=2, names={"background": 0, "a": 1, "b": 2, "ignore": 9})
    volume = read_volume(folder / "labels" / "case_0.nii.gz")
    write_volume(folder / "labels" / "case_0.nii.gz", np.full(volume.grid.shape, 9, dtype=np.uint8), volume.grid)
    (finding,) = segpipe.check(folder, work=tmp_path / "w", jobs=1).findings
    assert (finding.case, finding.rule, finding.severity) == ("case_0", "nothing labelled", "error")


def test_evaluate_scores_what_a_dataset_declares(tmp_path):
    reference = np.zeros(GRID.shape, dtype=np.uint8)
    reference[1:3, 1:4, 1:5] = 1
    reference[1:3, 2:3, 2:4] = 4
    reference[3] = 9
    prediction = reference.copy()
    prediction[3] = 4  # where nobody labelled
    prediction[1, 2, 2] = 1
    for name, array in (("reference", reference), ("prediction", prediction)):
        write_volume(tmp_path / name / "a.nii.gz", array, GRID)
    declared = {"labels": BRATS["labels"] | {"ignore": 9}, "regions_class_order": [2, 1, 4]}
    (tmp_path / "dataset.json").write_text(json.dumps(declared), encoding="utf-8")
    result = segpipe.evaluate(tmp_path / "prediction", tmp_path / "reference", labels=tmp_path / "dataset.json", jobs=1)
    dice = {name: s.mean_dice for name, s in result.by_label.items()}
    assert dice == {"whole": 1.0, "core": 1.0, "enhancing": pytest.approx(2 * 3 / 7)}


def test_one_hot_references_are_scored_by_their_declared_values(tmp_path):
    labels = np.random.default_rng(0).integers(0, 3, (6, 5, 4))
    (tmp_path / "ref").mkdir()
    (tmp_path / "pred").mkdir()
    one_hot(tmp_path / "ref" / "a.nii.gz", [labels == k for k in (1, 2)])
    nib.save(nib.Nifti1Image(np.array([0, 7, 9], dtype=np.uint8)[labels], np.eye(4)), tmp_path / "pred" / "a.nii.gz")
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "x": 7, "y": 9}}), encoding="utf-8")
    result = segpipe.evaluate(tmp_path / "pred", tmp_path / "ref", labels=tmp_path / "dataset.json", jobs=1)
    assert result.mean_dice == 1
    assert "declare the labels" in segpipe.evaluate(tmp_path / "pred", tmp_path / "ref", jobs=1).failed["a"]


@pytest.mark.parametrize("orientation", ORIENTATIONS[::5])
def test_a_label_that_is_stored_in_another_order_of_axes_is_brought_onto_its_image(tmp_path, orientation):
    """Converters of DICOM flip rows; what counts is where the voxels lie."""
    image, labels = cube_case(np.random.default_rng(3))
    grid = axis_grid(image.shape)
    write_volume(tmp_path / "d/images/a.nii.gz", image, grid)
    turned = Volume(labels[None], grid).reoriented(orientation)
    write_volume(tmp_path / "d/labels/a.nii.gz", np.ascontiguousarray(turned.array[0]), turned.grid)
    assert segpipe.check(tmp_path / "d", work=tmp_path / "w", jobs=1).findings == ()
    stored = read_array(Workspace(tmp_path / "w").case("a").labels)
    np.testing.assert_array_equal(stored, labels)
    straight = tmp_path / "straight.nii.gz"
    write_volume(straight, labels, grid)
    assert segpipe.evaluate(tmp_path / "d/labels/a.nii.gz", straight, jobs=1).mean_dice == 1


def test_a_coarser_channel_reaches_to_its_own_border(tmp_path):
    """Six thick slices over thirty thin ones: no voxel of the rim is set to the minimum, none beyond is interpolated."""
    thick = axis_grid((6, 20, 24), spacing=(5.0, 1.5, 1.0), origin=(10, -20, 2.0))
    thin = axis_grid((34, 20, 24), spacing=(1.0, 1.5, 1.0), origin=(10, -20, -2.0))
    values = np.full((1, 6, 20, 24), 100, dtype=np.float32)
    values[0, 3, 5, 5] = 7
    moved = onto_grid("a", "x", Volume(values, thick), thin).array[0]
    assert (moved[2:32, 0, 0] == 100).all()
    assert (moved[:2] == 7).all()
    assert (moved[32:] == 7).all()


def test_the_choice_to_resample_holds_until_it_is_taken_back(tmp_path):
    two_channels(tmp_path / "d", axis_grid((16, 20, 24), origin=(10.3, -20.0, 5.0)))
    segpipe.plan(tmp_path / "d", work=tmp_path / "w", resample_channels=True, jobs=1)
    assert not [f for f in segpipe.check(tmp_path / "d", work=tmp_path / "w", jobs=1).findings if f.severity == "error"]
    assert segpipe.plan(tmp_path / "d", work=tmp_path / "w", jobs=1).resample_channels
    with pytest.raises(DatasetError, match="different grids"):
        segpipe.plan(tmp_path / "d", work=tmp_path / "w", resample_channels=False, jobs=1)


def test_ignored_voxels_outside_the_image_are_no_loss(tmp_path):
    folder = write_small_dataset(tmp_path / "d", n_cases=1, names={"background": 0, "a": 1, "b": 2, "ignore": 9})
    image, label = (read_volume(folder / part / "case_0.nii.gz") for part in ("images", "labels"))
    array, labels = image.array[0].copy(), label.array[0].copy()
    array[:3], labels[:3] = 0, 9
    write_volume(folder / "images" / "case_0.nii.gz", array, image.grid)
    write_volume(folder / "labels" / "case_0.nii.gz", labels, label.grid)
    assert segpipe.check(folder, work=tmp_path / "w", jobs=1).findings == ()
