import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import binary_fill_holes

import segpipe
from segpipe.core.artefact import json_digest
from segpipe.core.geometry import bounding_box
from segpipe.core.labels import Labels, Target
from segpipe.core.volume import Volume
from segpipe.core.workspace import PreparedFiles, Workspace
from segpipe.dataset.fingerprint.measure import CaseMeasurements, intensity_statistics, measure_case
from segpipe.dataset.fingerprint.schema import Fingerprint, IntensityStatistics
from segpipe.errors import ArtefactError, CaseError, SegpipeError
from segpipe.io.arrays import open_array, read_array, write_array
from segpipe.preprocessing.foreground import LABELLED, MAX_PER_TARGET, foreground_index, index_voxels
from segpipe.preprocessing.normalise import normalise
from segpipe.preprocessing.prepare import filled
from segpipe.workflows.project import Project
from tests.phantoms import axis_grid, cube_case, write_case, write_small_dataset

STATISTICS = IntensityStatistics(mean=10, median=9, std=4, min=-5, max=50, percentile_00_5=-2, percentile_99_5=30)


def test_the_five_schemes():
    rng = np.random.default_rng(0)
    image = rng.uniform(1, 200, (5, 3, 4, 5)).astype(np.float32)
    made = normalise(image, ("zscore", "ct", "none", "rescale_0_1", "rgb_0_1"), (None,) * 5, (STATISTICS,) * 5)
    np.testing.assert_allclose(made[0], (image[0] - image[0].mean()) / image[0].std(), atol=1e-5)
    np.testing.assert_allclose(made[1], (np.clip(image[1], -2, 30) - 10) / 4, atol=1e-6)
    np.testing.assert_array_equal(made[2], image[2])
    assert (made[3].min(), made[3].max()) == (0, 1)
    np.testing.assert_allclose(made[4], image[4] / 255)


def test_zscore_inside_a_mask_leaves_zero_outside():
    image = np.arange(24, dtype=np.float32).reshape(1, 2, 3, 4)
    inside = np.zeros((2, 3, 4), dtype=bool)
    inside[1] = True
    made = normalise(image, ("zscore",), (inside,), ())
    assert not made[0, 0].any()
    assert made[0, 1].mean() == pytest.approx(0, abs=1e-6)
    assert made[0, 1].std() == pytest.approx(1, abs=1e-5)


def test_a_constant_channel_is_not_divided_by_zero():
    made = normalise(
        np.full((2, 2, 2, 2), 7, dtype=np.float32),
        ("zscore", "rescale_0_1"),
        (None, None),
        (),
    )
    assert np.isfinite(made).all()


def test_rgb_outside_its_range_is_refused():
    with pytest.raises(CaseError, match="0 to 300"):
        normalise(np.array([[[[0.0, 300.0]]]], dtype=np.float32), ("rgb_0_1",), (None,), ())


def test_nonzero_mask_is_over_channels_with_holes_filled():
    image = np.zeros((2, 7, 7, 7), dtype=np.float32)
    image[0, 1:6, 1:6, 1:6] = 1
    image[0, 3, 3, 3] = 0
    image[1, 6, 6, 6] = 2
    mask = filled((image != 0).any(axis=0))
    assert mask[3, 3, 3]
    assert mask[6, 6, 6]
    assert mask.sum() == 126
    assert bounding_box(mask) == (slice(1, 7), slice(1, 7), slice(1, 7))


@pytest.mark.parametrize("values", [(2, 130, 300), (1, 2, 3), (5, 70_000)])
def test_labels_map_to_indices_and_back(values):
    labels = Labels.plain({f"label_{v}": v for v in values})
    stored = np.array([(0, *values), (0, *values)[::-1]], dtype=np.uint32)
    indices = labels.indices_of(stored)
    np.testing.assert_array_equal(indices[0], range(len(values) + 1))
    back = labels.written(indices)
    np.testing.assert_array_equal(back, stored)
    assert back.dtype == (np.uint8 if values[-1] < 256 else np.uint16 if values[-1] < 65536 else np.uint32)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 999), st.floats(0.2, 0.8))
def test_holes_are_filled_as_scipy_fills_them(seed, share):
    mask = np.random.default_rng(seed).random((6, 7, 8)) < share
    np.testing.assert_array_equal(filled(mask), binary_fill_holes(mask))


def test_statistics_weigh_every_case_the_same():
    grid = axis_grid((4, 4, 4))
    cases = []
    for value, n in ((10.0, 60), (20.0, 4)):
        labels = np.zeros(64, dtype=np.int32)
        labels[:n] = 1
        image = np.full((1, 4, 4, 4), value, dtype=np.float32)
        cases.append(measure_case(str(value), Volume(image, grid), labels.reshape(4, 4, 4), (4, 4, 4)))
    (statistics,) = intensity_statistics(cases)
    assert statistics.mean == pytest.approx(15)
    assert statistics.std == pytest.approx(5)
    assert (statistics.min, statistics.max) == (10, 20)


def test_statistics_of_one_case_are_numpys():
    rng = np.random.default_rng(3)
    image = rng.normal(100, 15, (1, 20, 20, 20)).astype(np.float32)
    labels = (rng.random((20, 20, 20)) < 0.5).astype(np.int32)
    measured: CaseMeasurements = measure_case("a", Volume(image, axis_grid((20, 20, 20))), labels, (20, 20, 20))
    (statistics,) = intensity_statistics([measured])
    voxels = image[0][labels > 0]
    assert statistics.mean == pytest.approx(voxels.mean(dtype=np.float64), rel=1e-6)
    assert statistics.std == pytest.approx(voxels.std(dtype=np.float64), rel=1e-5)
    assert statistics.percentile_00_5 == pytest.approx(np.percentile(voxels, 0.5), rel=1e-3)
    assert statistics.percentile_99_5 == pytest.approx(np.percentile(voxels, 99.5), rel=1e-3)


def test_the_foreground_index_holds_every_class():
    segmentation = np.full((30, 30, 30), -1, dtype=np.int16)
    segmentation[:25] = 1
    segmentation[29, 29, 29] = 2
    index = foreground_index(segmentation, Labels.plain({"a": 1, "b": 2, "c": 3}), np.random.default_rng(0))
    assert (index[:, 0] == 1).sum() == MAX_PER_TARGET
    assert index[index[:, 0] == 2].tolist() == [[2, 29, 29, 29]]
    assert all(segmentation[tuple(row[1:])] == row[0] for row in index[::997])


def test_the_foreground_index_lists_regions_and_labelled_voxels():
    labels = Labels(
        targets=(Target(name="whole", values=(1, 2), paint=1), Target(name="core", values=(2,), paint=2)),
        regions=True, ignore=9, n_entries=4,
    )  # fmt: skip
    segmentation = np.full((20, 20, 20), 3, dtype=np.int16)  # ignored
    segmentation[5, :4, :3] = [[0, 1, 2]] * 4
    index = foreground_index(segmentation, labels, np.random.default_rng(0))
    found = {n: {int(segmentation[tuple(row)]) for row in index[index[:, 0] == n][:, 1:]} for n in (LABELLED, 1, 2)}
    assert found == {LABELLED: {0, 1, 2}, 1: {1, 2}, 2: {2}}
    assert [(index[:, 0] == n).sum() for n in (LABELLED, 1, 2)] == [12, 8, 4]
    assert index_voxels(segmentation, labels) == (4, 4, 4, 8000 - 12)


def test_arrays_are_read_in_parts(tmp_path):
    array = np.random.default_rng(0).normal(size=(2, 40, 50, 60)).astype(np.float32)
    write_array(tmp_path / "a.b2nd", array, (16, 32, 32))
    opened = open_array(tmp_path / "a.b2nd")
    np.testing.assert_array_equal(opened[:, 3:9, 10:20, 40:60], array[:, 3:9, 10:20, 40:60])
    np.testing.assert_array_equal(read_array(tmp_path / "a.b2nd"), array)
    assert opened.chunks[0] == 1
    empty = np.empty((0, 4), dtype=np.int32)
    write_array(tmp_path / "empty.b2nd", empty)
    assert read_array(tmp_path / "empty.b2nd").shape == (0, 4)
    with pytest.raises(ArtefactError, match=r"gone\.b2nd"):
        open_array(tmp_path / "gone.b2nd")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A dataset with two faulty cases among five, prepared."""
    folder = write_small_dataset(tmp_path_factory.mktemp("prep") / "dataset", n_cases=5, values=(130, 300))
    (folder / "images" / "case_0.nii.gz").write_bytes(b"broken")
    (folder / "labels" / "case_1.nrrd").unlink()
    work = folder.parent / "work"
    index = segpipe.preprocess(folder, work=work, jobs=1)
    return folder, Workspace(work), index


def test_faulty_cases_are_named_and_the_rest_prepared(prepared):
    _, workspace, index = prepared
    left_out = Fingerprint.read(workspace.fingerprint).left_out
    assert set(left_out) == {"case_0", "case_1"}
    assert "unreadable" in left_out["case_0"]
    assert index.cases == ("case_2", "case_3", "case_4")
    assert not index.failed


def test_prepared_arrays(prepared):
    _, workspace, _ = prepared
    files = PreparedFiles(workspace.preprocessed("3d_fullres") / "case_2")
    image, segmentation, foreground = (
        read_array(files.image),
        read_array(files.segmentation),
        read_array(files.foreground),
    )
    assert image.dtype == np.float32
    assert segmentation.dtype == np.int16
    assert image.shape[1:] == segmentation.shape
    assert set(np.unique(segmentation)) == {0, 1, 2}
    assert set(foreground[:, 0]) == {1, 2}
    assert image.mean() == pytest.approx(0, abs=1e-4)


def test_what_is_prepared_is_not_touched_again(prepared):
    folder, workspace, _ = prepared
    arrays = sorted(workspace.preprocessed("3d_fullres").rglob("*.b2nd"))
    before = [p.stat().st_mtime_ns for p in arrays]
    segpipe.preprocess(folder, work=workspace.root, jobs=1)
    assert [p.stat().st_mtime_ns for p in arrays] == before
    files = PreparedFiles(workspace.preprocessed("3d_fullres") / "case_3")
    files.image.unlink()
    segpipe.preprocess(folder, work=workspace.root, jobs=1)
    changed = [f"{p.parent.name}/{p.name}" for p, b in zip(arrays, before, strict=True) if p.stat().st_mtime_ns != b]
    assert changed == [f"case_3/{name}.b2nd" for name in ("foreground", "image", "segmentation")]


def test_names_of_cases_cannot_collide(tmp_path):
    """A case that is called like another one's segmentation, or like the index, has arrays of its own."""
    folder = tmp_path / "dataset"
    for number, case in enumerate(("s1", "s1_seg", "s1_fg", "index", "3d_fullres")):
        image, labels = cube_case(np.random.default_rng(number))
        write_case(folder, case, image, labels, axis_grid(labels.shape))
    work = Workspace(tmp_path / "work")
    index = segpipe.preprocess(folder, work=work.root, jobs=1)
    assert len(index.cases) == 5
    for case in index.cases:
        files = PreparedFiles(work.preprocessed("3d_fullres") / case)
        assert (read_array(files.image).ndim, read_array(files.segmentation).ndim) == (4, 3)


def test_a_case_that_failed_to_be_read_is_tried_again(tmp_path):
    folder = write_small_dataset(tmp_path / "dataset", n_cases=3)
    path = folder / "images" / "case_0.nii.gz"
    content, stamp = path.read_bytes(), path.stat()
    path.write_bytes(b"x" * len(content))
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    work = Workspace(tmp_path / "work")
    assert set(Project(folder, work, workers=1).measure().left_out) == {"case_0"}
    path.write_bytes(content)
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert not Project(folder, work, workers=1).measure().left_out


def test_single_slices_are_planned_in_two_dimensions(tmp_path):
    """Also where the pixels are coarser than the distance the header gives to the slice."""
    folder = tmp_path / "dataset"
    for number in range(3):
        image, labels = cube_case(np.random.default_rng(number), (16, 40, 48))
        middle = [int(np.argmax(labels.any(axis=(1, 2))))]
        write_case(
            folder, f"case_{number}", image[middle], labels[middle], axis_grid((1, 40, 48), spacing=(1.0, 2.0, 2.0))
        )
    plan = segpipe.plan(folder, work=tmp_path / "work", jobs=1)
    assert list(plan.configurations) == ["2d"]
    assert plan.transpose_forward == (0, 1, 2)
    assert plan.configurations["2d"].spacing_mm == (2.0, 2.0)


def test_nothing_is_written_where_the_dataset_lies(tmp_path):
    folder = write_small_dataset(tmp_path / "dataset", n_cases=2)
    before = (folder / "dataset.json").read_bytes()
    for work in (folder, folder / "runs"):
        with pytest.raises(SegpipeError, match="own folder"):
            segpipe.plan(folder, work=work, jobs=1)
    assert (folder / "dataset.json").read_bytes() == before


def test_a_thin_stack_keeps_a_slice():
    from segpipe.core.geometry import resampled_shape

    assert resampled_shape((2, 10, 10), (1.0, 1.0, 1.0), (5.0, 1.0, 1.0)) == (1, 10, 10)


def test_a_changed_dataset_makes_the_plan_stale(tmp_path):
    folder = write_small_dataset(tmp_path / "dataset", n_cases=3)
    work = tmp_path / "work"
    segpipe.plan(folder, work=work, jobs=1)
    write_small_dataset(folder, n_cases=4)
    with pytest.raises(ArtefactError, match="run `segpipe plan` again"):
        segpipe.preprocess(folder, work=work, jobs=1)


def test_digests_do_not_depend_on_key_order():
    assert json_digest({"a": 1, "b": 2}) == json_digest({"b": 2, "a": 1})
