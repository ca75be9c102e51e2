"""A folder of images: what is done, by whom, what is left behind, and what is said of each."""

import os
import shutil

import numpy as np
import pytest

import segpipe
from segpipe.dataset.load import load_image
from segpipe.errors import CaseError, SegpipeError
from segpipe.execution.device import choose_runtime
from segpipe.inference.engines.choose import has_openvino
from segpipe.inference.manifest import Manifest
from segpipe.inference.predictor import Predictor, PredictorOptions
from segpipe.io.formats import read_volume, write_volume
from segpipe.models.file import ModelFile
from segpipe.postprocessing.schema import PostprocessingRules, Rule
from tests.engines import predictor_of
from tests.helpers.batch import SHAPE, drawn, rows_of
from tests.helpers.inference import small_plan, threshold_predictor
from tests.helpers.nnunet_models import model_of
from tests.phantoms import axis_grid


def test_resume_goes_by_content(six_scans, tmp_path, two_fold_model):
    out, how = tmp_path / "out", {"model": two_fold_model, "tta": False, "device": "cpu", "resume": True}
    segpipe.predict(six_scans, out, **how)
    assert len(rows_of(out)) == 6
    for path in six_scans.iterdir():
        os.utime(path, (1, 1))  # copied: another time, the same content
    segpipe.predict(six_scans, out, **how)
    assert len(rows_of(out)) == 6
    stat = (six_scans / "a.nii.gz").stat()
    write_volume(six_scans / "a.nii.gz", drawn() * 3, axis_grid(SHAPE))
    os.utime(six_scans / "a.nii.gz", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    (out / "b.nii.gz").unlink()
    segpipe.predict(six_scans, out, **how)
    assert sorted(r["case"] for r in rows_of(out)[6:]) == ["a", "b"]
    segpipe.predict(six_scans, out, **how | {"folds": ("0",)})
    assert len(rows_of(out)) == 14
    assert len((out / "predictions.csv").read_text(encoding="utf-8").splitlines()) == 7


def test_a_folder_that_moved_is_continued(six_scans, tmp_path, two_fold_model, monkeypatch):
    monkeypatch.chdir(tmp_path)
    how = {"tta": False, "device": "cpu", "resume": True}
    segpipe.predict("in", "out", model="model.segpipe", **how)
    (tmp_path / "out").rename(tmp_path / "moved")
    monkeypatch.chdir("/")
    rows = segpipe.predict(six_scans, tmp_path / "moved", model=two_fold_model, **how)
    assert len(rows_of(tmp_path / "moved")) == 6
    assert all(row.output.is_file() for row in rows)
    # The same content by another name is the same image.
    shutil.copy(six_scans / "a.nii.gz", tmp_path / "renamed.nii.gz")
    (row,) = segpipe.predict(tmp_path / "renamed.nii.gz", tmp_path / "moved" / "a.nii.gz", model=two_fold_model, **how)
    assert (row.case, len(rows_of(tmp_path / "moved"))) == ("renamed", 6)


def test_an_array_is_predicted_as_its_file_is(tmp_path, two_fold_model, six_scans):
    predictor = Predictor.load(two_fold_model, choose_runtime("cpu"))
    rows = segpipe.predict(six_scans / "b.nii.gz", tmp_path / "out", model=two_fold_model, device="cpu")
    volume = load_image("b", [six_scans / "b.nii.gz"], ("MR",)).volume
    found = predictor.predict(volume.array[0], volume.grid.spacing_mm)
    np.testing.assert_array_equal(found, read_volume(rows[0].output).array[0])
    with pytest.raises(CaseError, match=r"shape \(2, 3, 4, 5\); expected \(1, Z, Y, X\)"):
        predictor.predict(np.ones((2, 3, 4, 5)), (1, 1, 1))
    with pytest.raises(CaseError, match="NaN"):
        predictor.predict(np.full((3, 4, 5), np.nan), (1, 1, 1))


def test_the_models_rules_are_applied_unless_told_otherwise(tmp_path):
    image = drawn()
    image[15, 0, 0] = 1
    write_volume(tmp_path / "a.nii.gz", image, axis_grid(SHAPE))
    predictor = threshold_predictor(small_plan())
    clean = predictor_of(
        predictor.plan, predictor.stages[0].ensemble.engines[0].forward, rules=[Rule(label="low", keep="largest")]
    )
    volume = load_image("a", [tmp_path / "a.nii.gz"], ("MR",)).volume
    assert (predictor.segment(volume).labels == 130).sum() - (clean.segment(volume).labels == 130).sum() == 1
    held = model_of(small_plan())
    rules = PostprocessingRules(rules=(Rule(label="low", keep="largest"),)).to_json()
    ModelFile(held.plan_json, "3d_fullres", "tiny", (), held.folds, None, rules).write(tmp_path / "m.segpipe")
    with_rules, without = (
        Predictor.load(tmp_path / "m.segpipe", choose_runtime("cpu"), PredictorOptions(postprocess=p))
        for p in (True, False)
    )
    assert (len(with_rules.rules), len(without.rules)) == (1, 0)
    assert with_rules.digest != without.digest


@pytest.mark.skipif(not has_openvino(), reason="OpenVINO is not installed")
def test_compiled_networks_are_kept_and_a_damaged_one_is_made_again(tmp_path, two_fold_model, six_scans):
    cache = tmp_path / "cache"
    options = PredictorOptions(engine="openvino", precision="float32", cache=cache, tta=False)
    image = load_image("a", [six_scans / "a.nii.gz"], ("MR",)).volume
    first = Predictor.load(two_fold_model, choose_runtime("cpu"), options).segment(image).labels
    blobs = sorted(cache.glob("*.blob"))
    assert len(blobs) == 2
    # From the cache, in the same precision.
    again = Predictor.load(two_fold_model, choose_runtime("cpu"), options)
    np.testing.assert_array_equal(again.segment(image).labels, first)
    assert again.describe == "OpenVino in float32"
    blobs[0].write_bytes(b"damaged")
    np.testing.assert_array_equal(
        Predictor.load(two_fold_model, choose_runtime("cpu"), options).segment(image).labels, first
    )
    sound = [blob.read_bytes() for blob in blobs]
    assert len(sound[0]) > 1000
    size = len(sound[0])
    damage = {at: sound[0][:at] + bytes([sound[0][at] ^ 64]) + sound[0][at + 1 :] for at in (3, size // 3, size - 1)}
    # A network of another fold under this name is as wrong as a flipped bit.
    for content in (*damage.values(), sound[0][:-100], sound[1]):
        blobs[0].write_bytes(content)
        found = Predictor.load(two_fold_model, choose_runtime("cpu"), options).segment(image).labels
        np.testing.assert_array_equal(found, first)
        assert blobs[0].read_bytes() != content
    plain = Predictor.load(
        two_fold_model, choose_runtime("cpu"), PredictorOptions(engine="torch", precision="float32", tta=False)
    )
    assert (plain.segment(image).labels != first).mean() < 1e-3
    (tmp_path / "file").write_text("", encoding="utf-8")
    unwritable = PredictorOptions(engine="openvino", precision="float32", cache=tmp_path / "file" / "below", tta=False)
    np.testing.assert_array_equal(
        Predictor.load(two_fold_model, choose_runtime("cpu"), unwritable).segment(image).labels, first
    )
    shutil.rmtree(cache)


def test_a_mask_that_was_written_before_its_row_is_no_strangers(six_scans, tmp_path, two_fold_model):
    """Killed between the two: the claim that is left says whose it is."""
    out = tmp_path / "out"
    Manifest(out / "predictions.jsonl").claim(out / "a.nii.gz", wait=False).release()
    (out / "a.nii.gz").write_bytes(b"whole, but without a row")
    (out / ".7.partial.b.npy").write_bytes(b"half")
    rows = segpipe.predict(six_scans, out, model=two_fold_model, tta=False, device="cpu", resume=True)
    assert [r.status for r in rows] == ["done"] * 6
    assert not list(out.glob(".*"))
    (out / "a.npz").write_bytes(b"another program's")
    with pytest.raises(SegpipeError, match=r"a\.npz: is there already"):
        segpipe.predict(six_scans, out, model=two_fold_model, tta=False, device="cpu", save_probabilities=True)


def test_single_files_of_one_name_are_told_apart_by_their_outputs(six_scans, tmp_path, two_fold_model):
    for patient in ("p", "q"):
        (tmp_path / patient).mkdir()
        shutil.copy(six_scans / "a.nii.gz", tmp_path / patient / "image.nii.gz")
    for _ in range(2):
        for patient in ("p", "q"):
            source, output = tmp_path / patient / "image.nii.gz", tmp_path / "out" / f"{patient}.nii.gz"
            segpipe.predict(source, output, model=two_fold_model, tta=False, device="cpu", resume=True)
    assert len(rows_of(tmp_path / "out")) == 2
    assert len((tmp_path / "out" / "predictions.csv").read_text(encoding="utf-8").splitlines()) == 3
