import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

import segpipe
from segpipe.errors import DatasetError, ModelError, SegpipeError
from segpipe.execution.device import choose_runtime
from segpipe.inference.inputs import find_inputs
from segpipe.inference.predictor import Predictor, PredictorOptions
from segpipe.inference.run import predict as predict_stage
from segpipe.io.formats import read_volume, write_volume
from segpipe.models.file import ModelFile
from tests.dicoms import write_series
from tests.helpers.inference import LABELS, small_plan, threshold_predictor
from tests.phantoms import axis_grid
from tests.strategies import ORIENTATIONS


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


def test_resume_does_only_what_is_missing_or_changed(sound_and_broken, tmp_path, random_model):
    out = tmp_path / "out"
    segpipe.predict(sound_and_broken, out, model=random_model, tta=False, device="cpu")
    before = {c: (out / f"{c}.nii.gz").stat().st_mtime_ns for c in "abc"}
    (out / "b.nii.gz").unlink()
    grid = axis_grid((16, 20, 24))
    write_volume(sound_and_broken / "c.nii.gz", np.ones(grid.shape, dtype=np.float32), grid)
    with (out / "predictions.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"case": "a", "stat')
    segpipe.predict(sound_and_broken, out, model=random_model, tta=False, device="cpu", resume=True)
    after = {c: (out / f"{c}.nii.gz").stat().st_mtime_ns for c in "abc"}
    assert after["a"] == before["a"]
    assert after["b"] != before["b"]
    assert after["c"] != before["c"]


def test_a_bug_in_one_case_does_not_cost_the_others(sound_and_broken, tmp_path, random_model, monkeypatch):
    genuine = Predictor.segment

    def fails_once(self, *given):
        monkeypatch.setattr(Predictor, "segment", genuine)
        raise RuntimeError("a bug")

    monkeypatch.setattr(Predictor, "segment", fails_once)
    rows = segpipe.predict(sound_and_broken, tmp_path / "out", model=random_model, tta=False, device="cpu")
    done = {r.case: r for r in rows}
    assert done["a"].reason == "unexpected RuntimeError: a bug"
    assert (done["b"].status, done["c"].status) == ("done", "done")


def test_inputs_of_every_kind(tmp_path):
    grid = axis_grid((3, 4, 5))
    for name in ("p_0000", "p_0001", "q_0000", "q_0001"):
        write_volume(tmp_path / "two" / f"{name}.nii.gz", np.ones(grid.shape, dtype=np.int16), grid)
    cases = find_inputs(tmp_path / "two", tmp_path / "out", 2)
    assert [(c.id, len(c.images), c.output.name) for c in cases] == [("p", 2, "p.nii.gz"), ("q", 2, "q.nii.gz")]
    (tmp_path / "list.csv").write_text("case,image,image_2\nx,two/p_0000.nii.gz,two/p_0001.nii.gz\n", encoding="utf-8")
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


def test_a_model_round_trips_and_is_the_same_bytes(tmp_path, random_model):
    loaded = ModelFile.read(random_model)
    loaded.write(tmp_path / "again.segpipe")
    assert (tmp_path / "again.segpipe").read_bytes() == random_model.read_bytes()
    assert Predictor.load(random_model.parent, choose_runtime("cpu")).plan.labels == LABELS


def test_what_is_no_model_says_so(tmp_path, random_model):
    (tmp_path / "text.segpipe").write_text("no model", encoding="utf-8")
    with pytest.raises(ModelError, match="not a segpipe model"):
        ModelFile.read(tmp_path / "text.segpipe")
    with pytest.raises(ModelError, match="no such model"):
        ModelFile.read(tmp_path / "gone.segpipe")
    with pytest.raises(ModelError, match="has no fold 3; it has 0"):
        Predictor.load(random_model, choose_runtime("cpu"), PredictorOptions(folds=("3",)))


def test_digits_belong_to_the_case_when_the_model_has_one_channel(tmp_path):
    grid = axis_grid((3, 4, 5))
    for name in ("patient_0001", "patient_0002"):
        write_volume(tmp_path / "in" / f"{name}.nii.gz", np.ones(grid.shape, dtype=np.int16), grid)
    assert [c.id for c in find_inputs(tmp_path / "in", tmp_path / "out", 1)] == ["patient_0001", "patient_0002"]


def test_one_name_with_two_endings_is_a_failed_case(tmp_path, random_model):
    grid = axis_grid((16, 20, 24))
    for name in ("a.nii.gz", "a.nrrd", "b.nrrd"):
        write_volume(tmp_path / "in" / name, np.ones(grid.shape, dtype=np.int16), grid)
    rows = segpipe.predict(tmp_path / "in", tmp_path / "out", model=random_model, tta=False, device="cpu")
    assert [(r.case, r.status) for r in rows] == [("a", "failed"), ("b", "done")]
    assert "a.nii.gz, a.nrrd" in rows[0].reason


def test_a_reference_is_never_overwritten(tmp_path, random_model):
    grid = axis_grid((16, 20, 24))
    for kind in ("images", "labels"):
        write_volume(tmp_path / kind / "a.nii.gz", np.ones(grid.shape, dtype=np.int16), grid)
    before = (tmp_path / "labels" / "a.nii.gz").read_bytes()
    with pytest.raises(SegpipeError, match="was not written by segpipe predict"):
        segpipe.predict(tmp_path / "images", tmp_path / "labels", model=random_model, tta=False, device="cpu")
    assert (tmp_path / "labels" / "a.nii.gz").read_bytes() == before
    for _ in range(2):
        segpipe.predict(tmp_path / "images", tmp_path / "out", model=random_model, tta=False, device="cpu")


def test_a_detached_header_gives_one_whole_file(tmp_path):
    grid = axis_grid((16, 20, 24))
    write_volume(tmp_path / "in" / "a.mhd", np.ones(grid.shape, dtype=np.float32), grid)
    cases = find_inputs(tmp_path / "in" / "a.mhd", tmp_path / "out", 1)
    (row,) = predict_stage(cases, threshold_predictor(small_plan()), tmp_path / "out" / "predictions.jsonl")
    assert row.status == "done", row.reason
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["a.mha", "predictions.csv", "predictions.jsonl"]
    assert set(np.unique(read_volume(tmp_path / "out" / "a.mha").array)) == {130}
