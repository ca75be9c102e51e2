"""Prediction from the command line: a folder with broken files, killed at any moment, continued by several processes; models of nnU-Net."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from segpipe.io.formats import write_volume
from tests.helpers.inference import small_plan
from tests.helpers.nnunet_models import model_of
from tests.phantoms import axis_grid

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.e2e
SHAPE = (40, 48, 44)


def command(*words) -> list[str]:
    return [sys.executable, str(ROOT / "cli.py"), *map(str, words)]


def segpipe(*words) -> subprocess.CompletedProcess:
    return subprocess.run(command(*words), capture_output=True, text=True, check=False, encoding="utf-8")


@pytest.fixture
def thirty(tmp_path):
    """24 images, and 6 files broken in different ways."""
    rng, grid = np.random.default_rng(0), axis_grid(SHAPE)
    folder = tmp_path / "in"
    for number in range(24):
        write_volume(folder / f"case_{number:02d}.nii.gz", rng.normal(100, 20, SHAPE).astype(np.float32), grid)
    (folder / "x_empty.nii.gz").write_bytes(b"")
    (folder / "x_text.nrrd").write_text("no image", encoding="utf-8")
    (folder / "x_cut.nii.gz").write_bytes((folder / "case_00.nii.gz").read_bytes()[:5000])
    write_volume(folder / "x_nan.nii.gz", np.full(SHAPE, np.nan, dtype=np.float32), grid)
    write_volume(folder / "x_zero.nii.gz", np.zeros(SHAPE, dtype=np.float32), grid)
    (folder / "x_noise.nii").write_bytes(rng.bytes(2000))
    return folder


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "model.segpipe"
    model_of(small_plan()).write(path)
    return path


def test_broken_files_kills_and_several_processes_cost_no_case(thirty, model, tmp_path):
    how = ["--model", model, "--device", "cpu", "--engine", "torch", "--no-tta", "--quiet"]
    whole = segpipe("predict", thirty, tmp_path / "whole", *how, "--json")
    assert whole.returncode == 3
    rows = {row["case"]: row for row in json.loads(whole.stdout)}
    assert sum(r["status"] == "done" for r in rows.values()) == 24
    assert all(rows[name]["reason"] for name in ("x_empty", "x_text", "x_cut", "x_nan", "x_zero", "x_noise"))

    out = tmp_path / "killed"
    log = out / "predictions.jsonl"
    for least in (3, 9):
        process = subprocess.Popen(
            command("predict", thirty, out, *how, "--resume"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 120
        while (
            len(log.read_text(encoding="utf-8").splitlines()) if log.is_file() else 0
        ) < least and time.monotonic() < deadline:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
    parts = [
        subprocess.Popen(
            command("predict", thirty, out, *how, "--resume", "--shard", f"{n}/2"), stdout=subprocess.DEVNULL
        )
        for n in (1, 2)
    ]
    # All of the broken files are in one part or the other.
    assert {part.wait(timeout=120) for part in parts} == {3}
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
    done = [row["case"] for row in lines if row["status"] == "done"]
    assert len(done) == len(set(done)) == 24
    expected = sorted(p.name for p in (tmp_path / "whole").iterdir())
    assert sorted(p.name for p in out.iterdir()) == expected
    for file in (tmp_path / "whole").glob("*.nii.gz"):
        assert (out / file.name).read_bytes() == file.read_bytes()
