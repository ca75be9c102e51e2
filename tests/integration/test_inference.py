import json

import numpy as np

import segpipe
from segpipe.dataset.load import load_image
from segpipe.execution.device import choose_runtime
from segpipe.inference.predictor import Predictor, PredictorOptions
from segpipe.io.formats import write_volume
from segpipe.models.file import ModelFile
from tests.geometry import by_itk, by_nibabel, corners, nifti
from tests.phantoms import axis_grid


def test_bad_files_are_reported_and_the_rest_done(sound_and_broken, tmp_path, random_model):
    rows = segpipe.predict(sound_and_broken, tmp_path / "out", model=random_model, tta=False, device="cpu")
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
    lines = [
        json.loads(line) for line in (tmp_path / "out" / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert len(lines) == 7


def test_what_check_warns_of_in_a_header_is_a_doubt(tmp_path, random_model):
    """And mask and uncertainty lie on the image's grid, whichever program opens them."""
    voxels = np.random.default_rng(0).normal(size=(24, 20, 16)).astype(np.float32)
    leaning = np.array([[1.0, 0.01, 0, 5], [0, 1.5, 0, 6], [0, 0, 2, 7], [0, 0, 0, 1]])
    (tmp_path / "in").mkdir()

    def shrink(header):
        header["pixdim"][1:4] /= 2

    nifti(tmp_path / "in" / "contradicting.nii", voxels, np.diag([2.0, 3, 4, 1]), change=shrink)
    nifti(tmp_path / "in" / "leaning.nii", voxels, leaning, forms="sform")
    nifti(tmp_path / "in" / "sound.nii", voxels, np.diag([1.0, 1.5, 2, 1]))
    out = tmp_path / "out"
    rows = segpipe.predict(tmp_path / "in", out, model=random_model, tta=False, device="cpu", save_uncertainty=True)
    doubts = {r.case: [d for d in r.doubts if "pixdim" in d or "degrees" in d] for r in rows}
    assert [len(doubts[case]) for case in ("contradicting", "leaning", "sound")] == [1, 1, 0]
    assert "pixdim is believed" in doubts["contradicting"][0]
    for written in ("leaning.nii", "leaning_uncertainty.nii.gz"):
        np.testing.assert_allclose(by_nibabel(out / written)[1], corners(leaning, voxels.shape), atol=1e-4)
        np.testing.assert_allclose(by_itk(out / written)[1], corners(leaning, voxels.shape), atol=0.2)


def test_mirroring_and_folds_are_averaged(tmp_path, random_model):
    one = ModelFile.read(random_model)
    ModelFile(one.plan_json, "3d_fullres", "tiny", (0, 1, 2), {"0": one.folds["0"], "1": one.folds["0"]}).write(
        tmp_path / "two.segpipe"
    )
    grid = axis_grid((16, 20, 24))
    write_volume(tmp_path / "a.nii.gz", np.random.default_rng(0).normal(size=grid.shape).astype(np.float32), grid)
    image = load_image("a", [tmp_path / "a.nii.gz"], ("MR",)).volume
    runtime, plain = choose_runtime("cpu"), PredictorOptions(tta=False)
    single = Predictor.load(random_model, runtime, plain).segment(image)
    double = Predictor.load(tmp_path / "two.segpipe", runtime, plain).segment(image)
    np.testing.assert_array_equal(single.labels, double.labels)
    assert single.measured.agreement.disagreement is None
    assert double.measured.agreement.disagreement == 0
    mirrored = Predictor.load(random_model, runtime).segment(image)
    assert (mirrored.labels != single.labels).any()
    assert 0 < mirrored.measured.agreement.disagreement < 1


def test_the_fold_that_saw_every_case_is_no_member_of_the_ensemble(tmp_path, random_model):
    one = ModelFile.read(random_model)
    path = tmp_path / "both.segpipe"
    ModelFile(one.plan_json, "3d_fullres", "tiny", (), {"0": one.folds["0"], "all": one.folds["0"]}).write(path)

    def engines(*folds):
        return Predictor.load(path, choose_runtime("cpu"), PredictorOptions(folds=folds)).stages[0].ensemble.engines

    assert len(engines()) == 1
    assert len(engines("0", "all")) == 2
    ModelFile(one.plan_json, "3d_fullres", "tiny", (), {"all": one.folds["0"]}).write(path)
    assert len(engines()) == 1
