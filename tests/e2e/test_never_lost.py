"""A training that is killed, again and again, at any moment, ends with the weights of one that was left alone."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import segpipe
from segpipe.core.workspace import Workspace
from tests.phantoms import write_small_dataset

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.e2e

RECIPE = """
name = "tiny"
description = "for tests"
[planner]
base_features = 4
max_batch = 2
budget_gb = 1.0
[training]
iterations_per_epoch = 8
validation_batches = 1
average_decay = 0.9
patience_epochs = 50
checkpoint_minutes = 0.001
"""


def train(folder, work, *more) -> subprocess.Popen:
    line = [sys.executable, ROOT / "cli.py", "train", folder, "--work", work, "--epochs", "12", "--jobs", "1"]
    line += ["--device", "cpu", "--deterministic", "--no-tta", "--quiet", *more]
    return subprocess.Popen(
        [str(word) for word in line], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, encoding="utf-8"
    )


def ended(process) -> tuple[int, str]:
    told = process.communicate()[1]
    return process.returncode, told


@pytest.mark.parametrize("devices", [1, 2])
def test_killed_at_any_moment_and_resumed_the_weights_are_those_of_an_uninterrupted_run(tmp_path, devices):
    folder = write_small_dataset(tmp_path / "dataset")
    (tmp_path / "tiny.toml").write_text(RECIPE, encoding="utf-8")
    works = [tmp_path / name for name in ("whole", "killed")]
    for work in works:
        segpipe.plan(folder, work=work, recipe=tmp_path / "tiny.toml", jobs=1)
    share = ["--devices", devices] if devices > 1 else []
    whole = train(folder, works[0], *share)
    assert ended(whole) == (0, "")

    fold = Workspace(works[1]).fold("3d_fullres", "tiny", 0)
    moments = np.random.default_rng(devices).uniform(0.0, 1.2, 3)
    reached = []
    for moment in moments:
        process = train(folder, works[1], *share, *(["--resume"] if reached else []))
        begun = fold.checkpoint.stat().st_mtime_ns if fold.checkpoint.exists() else 0
        while process.poll() is None and not (fold.checkpoint.exists() and fold.checkpoint.stat().st_mtime_ns > begun):
            time.sleep(0.01)
        time.sleep(moment)
        process.send_signal(signal.SIGKILL)
        ended(process)
        wait_for_children(fold)
        reached.append(torch.load(fold.checkpoint, weights_only=True)["progress"]["iteration"])
    last = train(folder, works[1], *share, "--resume")
    assert ended(last) == (0, "")
    assert 0 < reached[0] < reached[1] < 96
    assert reached == sorted(reached)
    one, two = (Workspace(work).fold("3d_fullres", "tiny", 0) for work in works)
    assert one.weights.read_bytes() == two.weights.read_bytes()
    assert (
        len(one.log.read_text(encoding="utf-8").splitlines())
        == len(two.log.read_text(encoding="utf-8").splitlines())
        == 12
    )
    assert sorted(p.name for p in one.root.iterdir()) == sorted(p.name for p in two.root.iterdir())


def wait_for_children(fold) -> None:
    """A killed training's other processes notice and end; until then they may still write."""
    before = -1
    while fold.checkpoint.stat().st_mtime_ns != before:
        before = fold.checkpoint.stat().st_mtime_ns
        time.sleep(1.0)


def test_two_processes_on_one_fold_the_second_is_told(tmp_path):
    folder = write_small_dataset(tmp_path / "dataset")
    (tmp_path / "tiny.toml").write_text(
        RECIPE.replace("iterations_per_epoch = 8", "iterations_per_epoch = 200"), encoding="utf-8"
    )
    segpipe.plan(folder, work=tmp_path / "work", recipe=tmp_path / "tiny.toml", jobs=1)
    first = train(folder, tmp_path / "work")
    fold = Workspace(tmp_path / "work").fold("3d_fullres", "tiny", 0)
    while not fold.checkpoint.exists():
        assert first.poll() is None
        time.sleep(0.05)
    second = train(folder, tmp_path / "work", "--resume")
    code, told = ended(second)
    assert code == 1
    assert f"another segpipe works here (process {first.pid} on" in told
    first.send_signal(signal.SIGTERM)
    code, told = ended(first)
    assert code == 128 + signal.SIGTERM
    assert "continue with --resume" in told
