"""Whole commands, from the command line's own entry function, with the default `--device auto`."""

import sys
from pathlib import Path
from unittest.mock import patch

import pytest
import torch

from segpipe.cli.app import main
from segpipe.core.workspace import Workspace
from segpipe.evaluation.schema import Evaluation
from segpipe.execution import device
from segpipe.execution.device import choose_runtime
from segpipe.io.formats import read_volume
from segpipe.training.schema import TrainingRecord
from segpipe.workflows.crossval.workers import plan_workers
from tests.simulated.conftest import HAS_GPU
from tests.simulated.stand_ins import simulated_device
from tests.simulated.work import RECIPE

PHANTOMS = Path(__file__).parents[2] / "data" / "phantoms"


def command(*words):
    """Run a command as the console script does; returns its exit code."""
    with patch.object(sys, "argv", ["segpipe", *map(str, words)]):
        try:
            main()
        except SystemExit as end:
            return end.code or 0
    return 0


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """`run` on the demo dataset, on the simulated device and on a processor, both in float32: their folder."""
    if HAS_GPU:
        pytest.skip("a real GPU is here: it does not compute in float32 by default")
    folder = tmp_path_factory.mktemp("commands")
    (folder / "tiny.toml").write_text(RECIPE, encoding="utf-8")
    how = ("--recipe", folder / "tiny.toml", "--epochs", 2, "--jobs", 1, "--quiet")
    with simulated_device(capability=(6, 0)):
        assert command("run", PHANTOMS, "--work", folder / "gpu", *how) == 0
        scans = ("predict", PHANTOMS / "images")
        model = ("--model", folder / "gpu/models/3d_fullres/tiny", "--quiet")
        assert command(*scans, folder / "predicted_gpu", *model) == 0
        teacher = ("--teacher", folder / "gpu/models/3d_fullres/tiny", "--student", "width=0.5,multiple=2")
        taught = ("--work", folder / "gpu", "--no-compare", "--epochs", 1, "--jobs", 1, "--quiet")
        assert command("distill", PHANTOMS, *teacher, *taught) == 0
    with patch.object(device, "cpu_flags", frozenset):
        assert command("run", PHANTOMS, "--work", folder / "cpu", *how, "--device", "cpu") == 0
    assert (
        command(
            *scans, folder / "predicted_cpu", *model, "--device", "cpu", "--precision", "float32", "--engine", "torch"
        )
        == 0
    )
    assert command(*scans, folder / "predicted_openvino", *model, "--device", "cpu", "--precision", "float32") == 0
    return folder


def test_run_trains_and_scores_as_on_a_processor(runs):
    workspaces = [Workspace(runs / name) for name in ("gpu", "cpu")]
    there, here = (TrainingRecord.read(w.fold("3d_fullres", "tiny", 0).record) for w in workspaces)
    assert there.device == "simulated cuda, float32"
    assert here.device.startswith("CPU")
    assert here.device.endswith("float32")
    assert there.train_loss == pytest.approx(here.train_loss, abs=1e-3)
    scores = [Evaluation.read(w.evaluation / "3d_fullres/tiny/fold_0.json").mean_dice for w in workspaces]
    assert scores[0] == pytest.approx(scores[1], abs=1e-3)
    assert scores[1] > 0.02, "the training has learned something that can be compared"


def test_distill_teaches_a_student(runs):
    (folder,) = (runs / "gpu/models/3d_fullres").glob("*~distilled")
    assert TrainingRecord.read(folder / "fold_0/record.json").device == "simulated cuda, float32"
    assert (folder / "model.segpipe").is_file()


@pytest.mark.parametrize("engine", ["predicted_cpu", "predicted_openvino"])
def test_predict_gives_the_masks_of_a_processor(runs, engine):
    differing = total = 0
    for file in sorted((runs / engine).glob("*.nii.gz")):
        here, there = (read_volume(folder / file.name).array for folder in (runs / engine, runs / "predicted_gpu"))
        differing, total = differing + int((here != there).sum()), total + here.size
    assert total > 1e5
    assert differing <= 1e-5 * total


def test_a_worker_is_told_a_device_that_it_can_choose(simulated, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with simulated():
        for asked in ("auto", "cuda", "cuda:0"):
            planned = plan_workers(asked, 5, 2**20, workers=None, threads=None)
            assert [e["CUDA_VISIBLE_DEVICES"] for e in planned.environments] == ["0"]
            assert choose_runtime(planned.device).device.type == "cuda"


@pytest.mark.parametrize(
    ("asked", "visible", "limit", "expected"),
    [
        ("auto", None, None, ["0", "1", "2"]),
        ("cuda", "4,GPU-a1,7", None, ["4", "GPU-a1", "7"]),
        ("cuda:1", "4,GPU-a1,7", None, ["GPU-a1"]),
        ("auto", "4,5,6", 2, ["4", "5"]),
    ],
)
def test_each_worker_sees_one_gpu(simulated, monkeypatch, asked, visible, limit, expected):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with simulated(n_devices=3):
        planned = plan_workers(asked, 5, 2**20, workers=limit, threads=2)
    assert [e["CUDA_VISIBLE_DEVICES"] for e in planned.environments] == expected
    with simulated():
        assert choose_runtime(planned.device).device == torch.device("cuda")
