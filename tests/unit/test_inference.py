import json

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch

import segpipe
from segpipe.core.labels import Labels
from segpipe.dataset.load import load_image
from segpipe.errors import DatasetError, ModelError, SegpipeError
from segpipe.execution.device import choose_runtime
from segpipe.inference.inputs import find_inputs
from segpipe.inference.predictor import Predictor, PredictorOptions
from segpipe.inference.run import predict as predict_stage
from segpipe.io.formats import read_volume, write_volume
from segpipe.models.file import ModelFile
from segpipe.models.nnunet.fingerprint import read_fingerprint
from segpipe.networks.build import build_network
from segpipe.planning import make_plan
from segpipe.planning.recipe import PlannerSettings, Recipe
from tests.dicoms import write_series
from tests.engines import predictor_of
from tests.phantoms import axis_grid
from tests.strategies import ORIENTATIONS

LABELS = Labels.plain({"low": 130, "high": 300})


def small_plan(n_channels=1, spacing=(2.0, 1.5, 1.0)):
    fingerprint = read_fingerprint(
        {
            "num_training": 4, "channel_names": ["noNorm"] * n_channels, "num_labels_with_background": 3, "spacings": [list(spacing)] * 4,
            "shapes_after_crop": [[16, 20, 24]] * 4, "median_relative_size_after_cropping": 1.0,
        }
    )  # fmt: skip
    recipe = Recipe(name="tiny", description="", planner=PlannerSettings(base_features=2, max_batch=2))
    return make_plan(fingerprint.model_copy(update={"labels": LABELS}), recipe)


def threshold_predictor(plan) -> Predictor:
    """A network that knows the answer: class 1 between 0.5 and 1.5, class 2 above."""

    def forward(x):
        return torch.cat([-((x[:, :1] - k) ** 2) for k in range(3)], dim=1)

    return predictor_of(plan, forward)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    plan = small_plan()
    torch.manual_seed(0)
    network = build_network(plan.configuration("3d_fullres").network, 1, 3)
    path = tmp_path_factory.mktemp("model") / "model.segpipe"
    ModelFile(plan.to_json(), "3d_fullres", "tiny", (0, 1, 2), {"0": network.state_dict()}).write(path)
    return path


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd"])
@pytest.mark.parametrize("number", range(48))
def test_a_prediction_lies_on_its_image_in_every_orientation(tmp_path, number, ending):
    """Shape, header and type are kept, labels 130 and 300 come back, and every voxel lies where it was drawn."""
    orientation = ORIENTATIONS[number]
    grid = axis_grid((16, 20, 24))
    drawn = np.zeros(grid.shape, dtype=np.float32)
    drawn[1:6, 2:9, 3:11] = 1
    drawn[9:14, 12:18, 15:22] = 2
    source = tmp_path / "in" / f"case{ending}"
    write_volume(source, orientation.apply(drawn), grid.reoriented(orientation))
    cases = find_inputs(source, tmp_path / "out", 1)
    (row,) = predict_stage(cases, threshold_predictor(small_plan()), tmp_path / "out" / "predictions.jsonl")
    assert row.status == "done", row.reason
    before, after = read_volume(source), read_volume(row.output)
    assert after.grid == before.grid
    assert after.array.dtype == np.uint16
    np.testing.assert_array_equal(after.array, np.array([0, 130, 300])[before.array.astype(int)])
    if ending == ".nrrd":
        assert sitk.ReadImage(str(row.output)).GetDirection() == sitk.ReadImage(str(source)).GetDirection()
    else:
        np.testing.assert_array_equal(nib.load(row.output).affine, nib.load(source).affine)


def test_volumes_are_measured(tmp_path):
    grid = axis_grid((16, 20, 24))
    drawn = np.zeros(grid.shape, dtype=np.float32)
    drawn[:10, :10, :10] = 1
    write_volume(tmp_path / "case.nii.gz", drawn, grid)
    (row,) = predict_stage(
        find_inputs(tmp_path / "case.nii.gz", tmp_path / "out", 1),
        threshold_predictor(small_plan()),
        tmp_path / "log.jsonl",
    )
    assert row.volumes_ml == {"low": pytest.approx(1000 * 3.0 / 1000), "high": 0.0}


@pytest.fixture
def folder(tmp_path):
    """Three sound images and four broken ones."""
    grid = axis_grid((16, 20, 24))
    rng = np.random.default_rng(0)
    for case in ("a", "b", "c"):
        write_volume(tmp_path / "in" / f"{case}.nii.gz", rng.normal(size=grid.shape).astype(np.float32), grid)
    (tmp_path / "in" / "empty.nii.gz").write_bytes(b"")
    (tmp_path / "in" / "text.nrrd").write_text("no image")
    write_volume(tmp_path / "in" / "nan.nii.gz", np.full(grid.shape, np.nan, dtype=np.float32), grid)
    nib.save(nib.Nifti1Image(np.ones((5, 5, 5, 2), dtype=np.float32), np.eye(4)), tmp_path / "in" / "channels.nii.gz")
    return tmp_path / "in"


def test_bad_files_are_reported_and_the_rest_done(folder, tmp_path, model):
    rows = segpipe.predict(folder, tmp_path / "out", model=model, tta=False, device="cpu")
    assert {r.case: r.status for r in rows} == {
        "a": "done", "b": "done", "c": "done", "empty": "failed", "text": "failed", "nan": "failed", "channels": "failed",
    }  # fmt: skip
    reasons = {r.case: r.reason for r in rows if r.reason}
    assert "0 bytes" in reasons["empty"]
    assert "not a readable image" in reasons["text"]
    assert "NaN" in reasons["nan"]
    assert "2 channel(s)" in reasons["channels"]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "a.nii.gz",
        "b.nii.gz",
        "c.nii.gz",
        "predictions.csv",
        "predictions.jsonl",
    ]
    lines = [json.loads(line) for line in (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()]
    assert len(lines) == 7


def test_resume_does_only_what_is_missing_or_changed(folder, tmp_path, model):
    out = tmp_path / "out"
    segpipe.predict(folder, out, model=model, tta=False, device="cpu")
    before = {c: (out / f"{c}.nii.gz").stat().st_mtime_ns for c in "abc"}
    (out / "b.nii.gz").unlink()
    grid = axis_grid((16, 20, 24))
    write_volume(folder / "c.nii.gz", np.ones(grid.shape, dtype=np.float32), grid)
    with (out / "predictions.jsonl").open("a") as file:
        file.write('{"case": "a", "stat')
    segpipe.predict(folder, out, model=model, tta=False, device="cpu", resume=True)
    after = {c: (out / f"{c}.nii.gz").stat().st_mtime_ns for c in "abc"}
    assert after["a"] == before["a"]
    assert after["b"] != before["b"]
    assert after["c"] != before["c"]


def test_a_bug_in_one_case_does_not_cost_the_others(folder, tmp_path, model, monkeypatch):
    genuine = Predictor.segment

    def fails_once(self, *given):
        monkeypatch.setattr(Predictor, "segment", genuine)
        raise RuntimeError("a bug")

    monkeypatch.setattr(Predictor, "segment", fails_once)
    rows = segpipe.predict(folder, tmp_path / "out", model=model, tta=False, device="cpu")
    done = {r.case: r for r in rows}
    assert done["a"].reason == "unexpected RuntimeError: a bug"
    assert (done["b"].status, done["c"].status) == ("done", "done")


def test_inputs_of_every_kind(tmp_path):
    grid = axis_grid((3, 4, 5))
    for name in ("p_0000", "p_0001", "q_0000", "q_0001"):
        write_volume(tmp_path / "two" / f"{name}.nii.gz", np.ones(grid.shape, dtype=np.int16), grid)
    cases = find_inputs(tmp_path / "two", tmp_path / "out", 2)
    assert [(c.id, len(c.images), c.output.name) for c in cases] == [("p", 2, "p.nii.gz"), ("q", 2, "q.nii.gz")]
    (tmp_path / "list.csv").write_text("case,image,image_2\nx,two/p_0000.nii.gz,two/p_0001.nii.gz\n")
    (case,) = find_inputs(tmp_path / "list.csv", tmp_path / "out", 2)
    assert (case.id, len(case.images)) == ("x", 2)
    (case,) = find_inputs(tmp_path / "two" / "p_0000.nii.gz", tmp_path / "mine.nii.gz", 1)
    assert case.output == tmp_path / "mine.nii.gz"
    with pytest.raises(DatasetError, match="no such file"):
        find_inputs(tmp_path / "gone", tmp_path / "out", 1)
    with pytest.raises(SegpipeError, match="overwrite an image"):
        find_inputs(tmp_path / "two" / "p_0000.nii.gz", tmp_path / "two", 1)


def test_a_folder_of_one_series_is_one_image_whatever_lies_beside_it(tmp_path):
    write_series(tmp_path / "ct")
    write_series(tmp_path / "ct" / "SEG", uid="1.2.3", Modality="SEG")
    (tmp_path / "ct" / "preview.png").write_bytes(b"picture")
    (case,) = find_inputs(tmp_path / "ct", tmp_path / "out", 1)
    assert (case.id, case.images, case.output.name) == ("ct", (tmp_path / "ct",), "ct.nii.gz")
    (case,) = find_inputs(tmp_path, tmp_path / "out", 1)
    assert case.id == "ct"


def test_a_model_round_trips_and_is_the_same_bytes(tmp_path, model):
    loaded = ModelFile.read(model)
    loaded.write(tmp_path / "again.segpipe")
    assert (tmp_path / "again.segpipe").read_bytes() == model.read_bytes()
    assert Predictor.load(model.parent, choose_runtime("cpu")).plan.labels == LABELS


def test_what_is_no_model_says_so(tmp_path, model):
    (tmp_path / "text.segpipe").write_text("no model")
    with pytest.raises(ModelError, match="not a segpipe model"):
        ModelFile.read(tmp_path / "text.segpipe")
    with pytest.raises(ModelError, match="no such model"):
        ModelFile.read(tmp_path / "gone.segpipe")
    with pytest.raises(ModelError, match="has no fold 3; it has 0"):
        Predictor.load(model, choose_runtime("cpu"), PredictorOptions(folds=("3",)))


def test_mirroring_and_folds_are_averaged(tmp_path, model):
    one = ModelFile.read(model)
    ModelFile(one.plan_json, "3d_fullres", "tiny", (0, 1, 2), {"0": one.folds["0"], "1": one.folds["0"]}).write(
        tmp_path / "two.segpipe"
    )
    grid = axis_grid((16, 20, 24))
    write_volume(tmp_path / "a.nii.gz", np.random.default_rng(0).normal(size=grid.shape).astype(np.float32), grid)
    image = load_image("a", [tmp_path / "a.nii.gz"], ("MR",)).volume
    runtime, plain = choose_runtime("cpu"), PredictorOptions(tta=False)
    single = Predictor.load(model, runtime, plain).segment(image)
    double = Predictor.load(tmp_path / "two.segpipe", runtime, plain).segment(image)
    np.testing.assert_array_equal(single.labels, double.labels)
    assert single.measured.agreement.disagreement is None
    assert double.measured.agreement.disagreement == 0
    mirrored = Predictor.load(model, runtime).segment(image)
    assert (mirrored.labels != single.labels).any()
    assert 0 < mirrored.measured.agreement.disagreement < 1


def test_digits_belong_to_the_case_when_the_model_has_one_channel(tmp_path):
    grid = axis_grid((3, 4, 5))
    for name in ("patient_0001", "patient_0002"):
        write_volume(tmp_path / "in" / f"{name}.nii.gz", np.ones(grid.shape, dtype=np.int16), grid)
    assert [c.id for c in find_inputs(tmp_path / "in", tmp_path / "out", 1)] == ["patient_0001", "patient_0002"]


def test_one_name_with_two_endings_is_a_failed_case(tmp_path, model):
    grid = axis_grid((16, 20, 24))
    for name in ("a.nii.gz", "a.nrrd", "b.nrrd"):
        write_volume(tmp_path / "in" / name, np.ones(grid.shape, dtype=np.int16), grid)
    rows = segpipe.predict(tmp_path / "in", tmp_path / "out", model=model, tta=False, device="cpu")
    assert [(r.case, r.status) for r in rows] == [("a", "failed"), ("b", "done")]
    assert "a.nii.gz, a.nrrd" in rows[0].reason


def test_a_reference_is_never_overwritten(tmp_path, model):
    grid = axis_grid((16, 20, 24))
    for kind in ("images", "labels"):
        write_volume(tmp_path / kind / "a.nii.gz", np.ones(grid.shape, dtype=np.int16), grid)
    before = (tmp_path / "labels" / "a.nii.gz").read_bytes()
    with pytest.raises(SegpipeError, match="was not written by segpipe predict"):
        segpipe.predict(tmp_path / "images", tmp_path / "labels", model=model, tta=False, device="cpu")
    assert (tmp_path / "labels" / "a.nii.gz").read_bytes() == before
    for _ in range(2):
        segpipe.predict(tmp_path / "images", tmp_path / "out", model=model, tta=False, device="cpu")


def test_a_detached_header_gives_one_whole_file(tmp_path):
    grid = axis_grid((16, 20, 24))
    write_volume(tmp_path / "in" / "a.mhd", np.ones(grid.shape, dtype=np.float32), grid)
    cases = find_inputs(tmp_path / "in" / "a.mhd", tmp_path / "out", 1)
    (row,) = predict_stage(cases, threshold_predictor(small_plan()), tmp_path / "out" / "predictions.jsonl")
    assert row.status == "done", row.reason
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["a.mha", "predictions.csv", "predictions.jsonl"]
    assert set(np.unique(read_volume(tmp_path / "out" / "a.mha").array)) == {130}


def test_the_fold_that_saw_every_case_is_no_member_of_the_ensemble(tmp_path, model):
    one = ModelFile.read(model)
    path = tmp_path / "both.segpipe"
    ModelFile(one.plan_json, "3d_fullres", "tiny", (), {"0": one.folds["0"], "all": one.folds["0"]}).write(path)

    def engines(*folds):
        return Predictor.load(path, choose_runtime("cpu"), PredictorOptions(folds=folds)).stages[0].ensemble.engines

    assert len(engines()) == 1
    assert len(engines("0", "all")) == 2
    ModelFile(one.plan_json, "3d_fullres", "tiny", (), {"all": one.folds["0"]}).write(path)
    assert len(engines()) == 1
