"""A folder of images: what is done, by whom, what is left behind, and what is said of each."""

import csv
import threading
import time

import numpy as np
import pytest
import torch

from segpipe.core.geometry import same_grid
from segpipe.core.labels import Labels, Target
from segpipe.dataset.load import load_image
from segpipe.errors import DeviceError, ModelError
from segpipe.execution.device import choose_runtime
from segpipe.inference.inputs import find_inputs
from segpipe.inference.manifest import Manifest
from segpipe.inference.memory import choose_sums
from segpipe.inference.outputs import Save
from segpipe.inference.predictor import Predictor, PredictorOptions
from segpipe.inference.run import predict as predict_stage
from segpipe.inference.run import shard_of
from segpipe.inference.sliding import windows_of
from segpipe.io.formats import read_volume, write_volume
from segpipe.models.file import ModelFile
from segpipe.planning.usual import UsualCases
from tests.engines import predictor_of
from tests.helpers.batch import SHAPE, drawn, rows_of
from tests.helpers.inference import small_plan, threshold_predictor
from tests.helpers.nnunet_models import model_of
from tests.phantoms import axis_grid
from tests.strategies import ORIENTATIONS


def test_shards_are_disjoint_and_together_all(six_scans, tmp_path):
    cases = find_inputs(six_scans, tmp_path / "out", 1)
    parts = [shard_of(list(reversed(cases)), number, 4) for number in (1, 2, 3, 4)]
    assert sorted(c.id for part in parts for c in part) == list("abcdef")
    assert [len(p) for p in parts] == [2, 2, 1, 1]


def test_two_processes_on_one_folder_share_the_cases(six_scans, tmp_path):
    """Without shards: a case that another one has is left to it, and is not computed again."""
    computed = []

    def slow(x):
        time.sleep(0.1)
        computed.append(threading.get_ident())
        return torch.cat([-((x[:, :1] - k) ** 2) for k in range(3)], dim=1)

    plan, out = small_plan(), tmp_path / "out"
    results = []

    def work():
        results.append(predict_stage(cases, predictor_of(plan, slow), out / "predictions.jsonl"))

    (six_scans / "x.nii.gz").write_bytes(b"")
    cases = find_inputs(six_scans, out, 1)
    workers = [threading.Thread(target=work) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [[r.status for r in rows] for rows in results] == [[*["done"] * 6, "failed"]] * 2
    assert len(rows_of(out)) == 7
    assert len(set(computed)) == 2
    assert not (out / ".segpipe").exists()


def test_logits_that_are_no_numbers_are_an_error_and_no_empty_mask(six_scans, tmp_path):
    predictor = predictor_of(small_plan(), lambda x: torch.full((len(x), 3, *x.shape[2:]), float("nan")))
    rows = predict_stage(find_inputs(six_scans, tmp_path / "out", 1), predictor, tmp_path / "out" / "predictions.jsonl")
    assert {r.status for r in rows} == {"failed"}
    assert "not finite numbers" in rows[0].reason
    assert not list((tmp_path / "out").glob("*.nii.gz"))


def test_a_line_that_a_crash_cut_off_does_not_swallow_the_next(six_scans, tmp_path):
    log = tmp_path / "out" / "predictions.jsonl"
    log.parent.mkdir()
    log.write_text('{"case": "a", "stat', encoding="utf-8")
    cases = find_inputs(six_scans, tmp_path / "out", 1)
    predict_stage(cases, threshold_predictor(small_plan()), log)
    assert sorted(Manifest(log).rows()) == [f"{case}.nii.gz" for case in "abcdef"]


def test_the_table_says_what_the_log_says(six_scans, tmp_path):
    (six_scans / "broken.nii.gz").write_bytes(b"")
    out = tmp_path / "out"
    predict_stage(find_inputs(six_scans, out, 1), threshold_predictor(small_plan()), out / "predictions.jsonl")
    with (out / "predictions.csv").open(encoding="utf-8") as file:
        rows = {row["case"]: row for row in csv.DictReader(file)}
    assert rows["broken"]["status"] == "failed"
    assert "0 bytes" in rows["broken"]["reason"]
    assert float(rows["a"]["low_ml"]) == pytest.approx(5 * 7 * 8 * 3.0 / 1000)
    assert rows["a"]["low_components"] == "1"
    assert rows["a"]["touches_border"] == "high"
    assert all(
        float(rows["a"][f"{stage}_s"]) >= 0 for stage in ("read", "prepare", "network", "restore", "quality", "write")
    )


def test_what_is_measured_on_a_segmentation(tmp_path):
    image = drawn()
    image[15, 0, 0] = 1
    write_volume(tmp_path / "a.nii.gz", image, axis_grid(SHAPE))
    usual = UsualCases(
        spacing_mm=((2.0, 2.0), (0.5, 0.6), (1.0, 1.0)), volumes_ml={"low": (0.1, 0.2), "high": (0.1, 9.0)}
    )
    plan = small_plan().model_copy(update={"usual": usual})
    cases = find_inputs(tmp_path / "a.nii.gz", tmp_path / "out", 1)
    (row,) = predict_stage(cases, threshold_predictor(plan), tmp_path / "out" / "log.jsonl")
    assert row.quality.components == {"low": 2, "high": 1}
    assert row.quality.touches_border == ("low", "high")
    assert row.quality.spacing_mm == (2.0, 1.5, 1.0)
    assert 0 < row.quality.mean_entropy < 1
    assert row.quality.disagreement is None
    assert (row.quality.spacing_outside, row.quality.volume_outside) == (("y",), ("low",))
    assert row.quality.intensity_drift is None
    spacing, volume = row.doubts
    assert "spacing along y is 1.5 mm, that of training 0.5 to 0.6 mm" in spacing
    assert volume.startswith("low has 0.843 ml, in training 0.1 to 0.2 ml")
    assert row.peak_memory_gb > 0
    assert row.n_windows > 0


@pytest.mark.parametrize("number", range(0, 48, 5))
@pytest.mark.parametrize("regions", [False, True])
def test_probabilities_and_uncertainty_lie_on_the_image(tmp_path, number, regions):
    """In every orientation, with a crop: the largest probability is the mask, and the middle of a label is certain."""
    orientation, grid = ORIENTATIONS[number], axis_grid(SHAPE)
    source = tmp_path / "in" / "case.nii.gz"
    write_volume(source, orientation.apply(drawn()), grid.reoriented(orientation))
    plan = small_plan(spacing=(3.0, 1.2, 1.3))

    def forward(x):
        labels = [-20 * ((x[:, :1] - k) ** 2) + 0.1 * (k == 0) for k in range(3)]
        return torch.cat([labels[1] + 5, labels[2] + 5], 1) if regions else torch.cat(labels, 1)

    if regions:
        both = tuple(Target(name=n, values=(v,), paint=v) for n, v in (("low", 130), ("high", 300)))
        plan = plan.model_copy(update={"labels": Labels(targets=both, regions=True, n_entries=3)})
    cases = find_inputs(source, tmp_path / "out", 1)
    save = Save(probabilities=True, uncertainty=True)
    (row,) = predict_stage(cases, predictor_of(plan, forward), tmp_path / "out" / "log.jsonl", save=save)
    assert row.status == "done", row.reason
    mask = read_volume(row.output).array[0]
    with np.load(tmp_path / "out" / "case.npz") as held:
        probabilities = held["probabilities"].astype(np.float32)
    assert probabilities.shape == (2 if regions else 3, *mask.shape)
    found = np.array([0, 130, 300])[probabilities.argmax(0) if not regions else (probabilities > 0.5).T.dot([1, 2]).T]
    assert (found == mask).mean() > 0.999
    uncertainty = read_volume(tmp_path / "out" / "case_uncertainty.nii.gz")
    assert same_grid(uncertainty.grid, read_volume(source).grid)
    certain = orientation.inverse().apply(uncertainty.array[0])
    assert certain.shape == SHAPE
    assert certain[3, 5, 6] < 0.1
    assert 0 <= certain.min() < certain.max() <= 1
    # Asked for, they are part of what is done.
    assert set(row.saved) == {tmp_path / "out" / "case.npz", tmp_path / "out" / "case_uncertainty.nii.gz"}
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "case.nii.gz", "case.npz", "case_uncertainty.nii.gz", "log.csv", "log.jsonl",
    ]  # fmt: skip
    (tmp_path / "out" / "case.npz").unlink()
    log = tmp_path / "out" / "log.jsonl"
    predict_stage(cases, predictor_of(plan, forward), log, resume=True)
    assert len(log.read_text(encoding="utf-8").splitlines()) == 1
    predict_stage(cases, predictor_of(plan, forward), log, resume=True, save=save)
    assert (tmp_path / "out" / "case.npz").is_file()


def test_several_models_are_averaged_by_their_probabilities(tmp_path, six_scans):
    plan = small_plan()
    paths = []
    for fold in ("0", "1"):
        paths.append(tmp_path / f"{fold}.segpipe")
        both = model_of(plan, folds=("0", "1"))
        ModelFile(both.plan_json, "3d_fullres", "tiny", (), {"0": both.folds[fold]}).write(paths[-1])
    runtime, options = choose_runtime("cpu"), PredictorOptions(engine="torch")
    image = load_image("a", [six_scans / "a.nii.gz"], ("MR",)).volume
    stages = [Predictor.load(path, runtime, options).stages[0] for path in paths]
    from segpipe.inference.stage import CaseTrace

    with torch.inference_mode():
        each = [torch.stack(list(s.probabilities(image, s.prepare(image), CaseTrace()).planes)) for s in stages]
    expected = np.array([0, 130, 300])[((each[0] + each[1]) / 2).argmax(1).numpy()]
    predictor = Predictor.load(tuple(paths), runtime, options)
    found = predictor.segment(image).labels
    alone = [Predictor.load(path, runtime, options).segment(image).labels for path in paths]
    nonzero = np.argwhere(image.array[0])
    box = tuple(slice(low, high + 1) for low, high in zip(nonzero.min(0), nonzero.max(0), strict=True))
    np.testing.assert_array_equal(found[box], expected)
    assert any((found != one).any() for one in alone)
    other = plan.model_copy(update={"labels": Labels.plain({"else": 1, "more": 2})})
    ModelFile(other.to_json(), "3d_fullres", "tiny", (), model_of(other).folds).write(tmp_path / "c.segpipe")
    with pytest.raises(ModelError, match="has other labels"):
        Predictor.load((paths[0], tmp_path / "c.segpipe"), runtime, options)


def test_where_logits_are_added_up_follows_from_the_memory():
    windows = windows_of((200, 300, 300), (128, 128, 128), 0.5)
    cpu = torch.device("cpu")
    chosen = [choose_sums(windows, 60, 1, cpu, free=int(gb * 1e9)) for gb in (8, 3, 0.5)]
    assert [(s.where, s.dtype) for s in chosen] == [
        ("cpu", torch.float32), ("cpu", torch.float16), ("file", torch.float16),
    ]  # fmt: skip
    held = chosen[-1].allocate((2, 3, 4, 5))
    held += 1
    assert held.sum() == 120


def test_engines_that_are_not_to_be_had_say_so(two_fold_model, monkeypatch):
    cpu = choose_runtime("cpu")
    monkeypatch.setattr("segpipe.inference.engines.choose.cpu_flags", frozenset)
    with pytest.raises(DeviceError, match="no instructions for it"):
        Predictor.load(two_fold_model, cpu, PredictorOptions(precision="bfloat16"))
    monkeypatch.setattr("segpipe.inference.engines.choose.has_openvino", lambda: False)
    with pytest.raises(DeviceError, match=r"pip install 'segpipe\[cpu\]'"):
        Predictor.load(two_fold_model, cpu, PredictorOptions(engine="openvino"))
    assert Predictor.load(two_fold_model, cpu).describe == "Torch in float32"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpus_masks_are_the_cpus(two_fold_model, six_scans):
    image = load_image("a", [six_scans / "a.nii.gz"], ("MR",)).volume
    options = PredictorOptions(engine="torch", precision="float32")
    on_gpu, on_cpu = (
        Predictor.load(two_fold_model, choose_runtime(d), options).segment(image).labels for d in ("cuda", "cpu")
    )
    assert (on_gpu != on_cpu).mean() < 1e-3
    halved = Predictor.load(two_fold_model, choose_runtime("cuda"), PredictorOptions()).segment(image).labels
    assert (halved != on_cpu).mean() < 0.05
