"""Regions, ignored voxels, PNG and DICOM through the whole line; the shared datasets through plan and preprocess."""

import json

import numpy as np
import pytest
import SimpleITK as sitk

import segpipe
from segpipe.core.workspace import PreparedFiles, Workspace
from segpipe.dataset.fingerprint.schema import Fingerprint
from segpipe.io.arrays import read_array
from segpipe.io.formats import read_volume, write_volume
from segpipe.preprocessing.schema import PreparedRecord
from tests.dicoms import write_series
from tests.phantoms import axis_grid

TINY = """name = "tiny"
description = "for tests"
[planner]
base_features = 4
budget_gb = 0.02
max_batch = 2
[training]
epochs = 4
iterations_per_epoch = 20
learning_rate = 0.03
momentum = 0.9
validation_batches = 2
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    path = tmp_path_factory.mktemp("recipe") / "tiny.toml"
    path.write_text(TINY, encoding="utf-8")
    return path


def nested(folder, n_cases=6, sparse=False):
    """A ball in a ball: whole = 2 + 5, core = 5; where it is sparse only every third slice is labelled."""
    shape = (18, 24, 24)
    z, y, x = np.meshgrid(*(np.arange(n) for n in shape), indexing="ij")
    for number in range(n_cases):
        rng = np.random.default_rng(number)
        centre = np.array(shape) / 2 + rng.uniform(-2, 2, 3)
        distance = np.sqrt((z - centre[0]) ** 2 + (y - centre[1]) ** 2 + (x - centre[2]) ** 2)
        labels = np.where(distance < 3.5, 5, np.where(distance < 7, 2, 0)).astype(np.uint8)
        image = rng.normal(100, 10, shape) + 60 * (labels == 2) + 120 * (labels == 5)
        if sparse:
            labels[np.arange(shape[0]) % 3 != 0] = 9
        for kind, array in (("images", image.astype(np.float32)), ("labels", labels)):
            write_volume(folder / kind / f"case_{number}.nii.gz", array, axis_grid(shape, spacing=(1.0, 1.0, 1.0)))


@pytest.mark.slow
def test_regions_are_trained_with_sigmoids_painted_in_order_and_scored(tmp_path, recipe):
    nested(tmp_path / "d")
    declared = {"labels": {"background": 0, "whole": [2, 5], "core": 5}, "regions_class_order": [2, 5]}
    (tmp_path / "d" / "dataset.json").write_text(json.dumps(declared), encoding="utf-8")
    result = segpipe.run(tmp_path / "d", work=tmp_path / "w", recipe=recipe, jobs=1, tta=False, device="cpu")
    assert result.plan.labels.regions
    assert result.evaluation.labels == {"whole": (2, 5), "core": (5,)}
    assert result.evaluation.by_label["whole"].mean_dice > 0.8
    assert result.evaluation.by_label["core"].mean_dice > 0.6
    written = {int(v) for p in result.predictions.glob("*.nii.gz") for v in np.unique(read_volume(p).array)}
    assert written == {0, 2, 5}
    rows = [
        json.loads(line) for line in (result.predictions / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert all(row["volumes_ml"]["whole"] > row["volumes_ml"]["core"] > 0 for row in rows)


@pytest.mark.slow
def test_a_few_labelled_slices_teach_the_whole_volume(tmp_path, recipe):
    nested(tmp_path / "d", sparse=True)
    declared = {"labels": {"background": 0, "shell": 2, "core": 5, "ignore": 9}}
    (tmp_path / "d" / "dataset.json").write_text(json.dumps(declared), encoding="utf-8")
    result = segpipe.run(tmp_path / "d", work=tmp_path / "w", recipe=recipe, epochs=12, jobs=1, tta=False, device="cpu")
    assert result.evaluation.ignore == 9
    assert result.evaluation.mean_dice > 0.6
    # Against the whole truth, that training never saw: the slices between were learnt too.
    nested(tmp_path / "truth")
    (tmp_path / "truth" / "labels.json").write_text(json.dumps(declared), encoding="utf-8")
    scores = segpipe.evaluate(
        result.predictions, tmp_path / "truth" / "labels", labels=tmp_path / "truth" / "labels.json", jobs=1
    )
    assert {c.case for c in scores.cases} == {
        p.name.removesuffix(".nii.gz") for p in result.predictions.glob("*.nii.gz")
    }
    assert scores.mean_dice > 0.6
    assert 9 not in {int(v) for p in result.predictions.glob("*.nii.gz") for v in np.unique(read_volume(p).array)}


@pytest.mark.slow
def test_png_images_and_masks(tmp_path, recipe):
    rng = np.random.default_rng(0)
    for number in range(6):
        mask = np.zeros((48, 64), dtype=np.uint8)
        y, x = rng.integers(4, 24, 2)
        mask[y : y + 18, x : x + 20] = 255
        colour = rng.normal(90, 10, (48, 64, 3)) + np.array([0, 60, 20]) * (mask > 0)[..., None]
        for kind, pixels in (("image", colour.clip(0, 255).astype(np.uint8)), ("label", mask)):
            (tmp_path / "d" / kind).mkdir(parents=True, exist_ok=True)
            sitk.WriteImage(
                sitk.GetImageFromArray(pixels, isVector=pixels.ndim == 3), str(tmp_path / "d" / kind / f"{number}.png")
            )
    result = segpipe.run(tmp_path / "d", work=tmp_path / "w", recipe=recipe, jobs=1, tta=False, device="cpu")
    assert list(result.plan.configurations) == ["2d"]
    assert len(result.plan.channel_names) == 3
    assert result.evaluation.mean_dice > 0.8
    written = read_volume(next(result.predictions.glob("*.png")))
    assert set(np.unique(written.array)) == {0, 255}
    assert result.report.is_file()


@pytest.mark.slow
def test_dicom_series_are_a_datasets_images_and_what_is_predicted(tmp_path, recipe):
    rng = np.random.default_rng(0)
    for number in range(5):
        labels = np.zeros((12, 24, 26), dtype=np.uint8)
        z, y, x = rng.integers(2, 6, 3)
        labels[z : z + 5, y : y + 12, x : x + 12] = 1
        image = (rng.normal(1000, 20, labels.shape) + 150 * labels).astype(np.uint16)
        write_series(tmp_path / "d/images" / f"p{number}" / "study", image)
        grid = read_volume(tmp_path / "d/images" / f"p{number}").grid
        write_volume(tmp_path / "d/labels" / f"p{number}.nii.gz", labels, grid)
    write_series(tmp_path / "d/images/p9", image, change=lambda n, _: n != 4)
    write_volume(tmp_path / "d/labels/p9.nii.gz", labels, grid)
    result = segpipe.run(tmp_path / "d", work=tmp_path / "w", recipe=recipe, jobs=1, tta=False, device="cpu")
    assert result.evaluation.mean_dice > 0.7
    assert "irregular series" in result.failed["p9"]
    assert "missing slice" in result.failed["p9"]
    rows = {r.case: r for r in segpipe.predict(tmp_path / "d/images", tmp_path / "out", model=result.model, tta=False)}
    assert rows["p9"].status == "failed"
    assert {r.status for c, r in rows.items() if c != "p9"} == {"done"}
    for case in ("p0", "p4"):
        ours, image = read_volume(tmp_path / "out" / f"{case}.nii.gz"), read_volume(tmp_path / "d/images" / case)
        assert ours.grid.shape == image.grid.shape
        np.testing.assert_allclose(ours.grid.affine, image.grid.affine, atol=1e-4)
    again = segpipe.predict(tmp_path / "d/images", tmp_path / "out", model=result.model, tta=False, resume=True)
    assert {r.case: r for r in again if r.status == "done"} == {c: r for c, r in rows.items() if r.status == "done"}
    (row,) = segpipe.predict(tmp_path / "d/images/p0/study", tmp_path / "one", model=result.model, tta=False)
    assert (row.case, row.output.name) == ("study", "study.nii.gz")
    # A CT whose slope and intercept were lost is predicted, and doubted.
    plain = read_volume(tmp_path / "d/images/p0")
    write_volume(tmp_path / "lost" / "a.nii.gz", plain.array[0] + 1024, plain.grid)
    (doubted,) = segpipe.predict(tmp_path / "lost", tmp_path / "lost_out", model=result.model, tta=False)
    assert doubted.status == "done"
    assert "intensities run from" in doubted.doubts[0]


@pytest.mark.data
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "configuration", "n_cases"), [("em_membrane", "2d", 30), ("fetal_brain", "3d_lowres", 16)]
)
def test_real_folders_go_through_plan_and_preprocess(data, tmp_path, name, configuration, n_cases):
    segpipe.plan(data / name, work=tmp_path / "w", jobs=1)
    index = segpipe.preprocess(data / name, work=tmp_path / "w", jobs=1)
    assert (index.configuration, len(index.cases), index.failed) == (configuration, n_cases, {})


def manifest(folder, rows):
    columns = ["case", "image", *(f"image_{i}" for i in range(2, 1 + max(len(r[1]) for r in rows))), "label"]
    lines = [",".join(columns)] + [",".join(map(str, [case, *images, label])) for case, images, label in rows]
    folder.mkdir()
    (folder / "cases.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


@pytest.mark.data
@pytest.mark.slow
def test_real_loose_files_go_through_plan_and_preprocess(data, tmp_path):
    brats = data / "brain_tumour_4_sequences/Brats18_2013_21_1/Brats18_2013_21_1"
    spine, nrrd = data / "spine_gapped_labels", data / "nrrd"
    datasets = {
        "brain": [("a", [f"{brats}_{s}.nii.gz" for s in ("t1", "t1ce", "t2", "flair")], f"{brats}_seg.nii.gz")],
        "spine": [
            ("ct", [spine / "sample_ct/sub-ct_label-22_ct.nii.gz"], spine / "sample_ct/sub-ct_seg-subreg_label-22_msk.nii.gz"),
            ("mr", [spine / "sample_mri/sub-mri_label-6_T2w.nii.gz"], spine / "sample_mri/sub-mri_seg-subreg_label-6_msk.nii.gz"),
        ],
        "nrrd": [
            *((c, [nrrd / f"{c}_image.nrrd"], nrrd / f"{c}_label.nrrd") for c in ("brain1", "brain2", "breast1")),
            ("prostate", [nrrd / "prostate_phantom_subvolume.nrrd"], nrrd / "prostate_phantom_subvolume-label.nrrd"),
            ("lung1", [nrrd / "lung1_image.nrrd"], nrrd / "lung1_label.nrrd"),
        ],
    }  # fmt: skip
    values = {"brain": (0, 1, 2, 4), "spine": (0, 41, 42), "nrrd": (0, 1, 7, 8, 9)}
    for name, rows in datasets.items():
        work = Workspace(tmp_path / name / "w")
        (tmp_path / name).mkdir()
        plan = segpipe.plan(manifest(tmp_path / name / "d", rows), work=work.root, jobs=1)
        index = segpipe.preprocess(tmp_path / name / "d", work=work.root, jobs=1)
        expected = [case for case, *_ in rows if case != "lung1"]
        assert sorted(index.cases) == sorted(expected)
        assert set(values[name]) <= set(plan.labels.values)
        for case in index.cases:
            files = PreparedFiles(work.preprocessed(index.configuration) / case)
            image, record = read_array(files.image), PreparedRecord.read(files.record)
            assert image.shape == (len(plan.channel_names), *record.shape)
            assert np.isfinite(image).all()
            assert sum(record.index_voxels[1:]) > 0
    left_out = Fingerprint.read(Workspace(tmp_path / "nrrd" / "w").fingerprint).left_out
    assert "no such file" in left_out["lung1"]


@pytest.mark.data
def test_a_real_dicom_series_with_a_nifti_label_of_another_order_of_axes(data, tmp_path):
    series, label = data / "dicom/ct_torso_20_slices", data / "dicom/ct_torso_20_slices_segmentation.nii.gz"
    dataset = manifest(tmp_path / "d", [("a", [series], label)])
    assert [f for f in segpipe.check(dataset, work=tmp_path / "w", jobs=1).findings if f.severity == "error"] == []
    segpipe.plan(dataset, work=tmp_path / "w", jobs=1)
    assert segpipe.preprocess(dataset, work=tmp_path / "w", jobs=1).cases == ("a",)


@pytest.mark.data
def test_real_channels_on_different_grids(data, tmp_path):
    case = data / "odd/channels_on_different_grids"
    raw = case / "rawdata/sub-strokecase0009/ses-0001/sub-strokecase0009_ses-0001"
    mask = case / "derivatives/sub-strokecase0009/ses-0001/sub-strokecase0009_ses-0001_msk.nii.gz"
    dataset = manifest(tmp_path / "d", [("s9", [f"{raw}_{c}.nii.gz" for c in ("dwi", "adc", "flair")], mask)])
    (finding,) = [f for f in segpipe.check(dataset, work=tmp_path / "w", jobs=1).findings if f.severity == "error"]
    assert finding.rule == "different grids"
    assert "shape 29x512x512" in finding.message
    segpipe.plan(dataset, work=tmp_path / "w", resample_channels=True, jobs=1)
    assert segpipe.preprocess(dataset, work=tmp_path / "w", jobs=1).cases == ("s9",)
