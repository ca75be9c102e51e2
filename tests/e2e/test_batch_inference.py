"""Prediction from the command line: a folder with broken files, killed at any moment, continued by several processes; models of nnU-Net."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from segpipe.io.formats import read_volume, write_volume
from segpipe.models.file import ModelFile
from tests.helpers.inference import small_plan
from tests.helpers.nnunet_models import model_of
from tests.phantoms import axis_grid

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.e2e
SHAPE = (40, 48, 44)


def command(*words) -> list[str]:
    return [sys.executable, str(ROOT / "cli.py"), *map(str, words)]


def segpipe(*words) -> subprocess.CompletedProcess:
    return subprocess.run(command(*words), capture_output=True, text=True, check=False)


@pytest.fixture
def thirty(tmp_path):
    """24 images, and 6 files broken in different ways."""
    rng, grid = np.random.default_rng(0), axis_grid(SHAPE)
    folder = tmp_path / "in"
    for number in range(24):
        write_volume(folder / f"case_{number:02d}.nii.gz", rng.normal(100, 20, SHAPE).astype(np.float32), grid)
    (folder / "x_empty.nii.gz").write_bytes(b"")
    (folder / "x_text.nrrd").write_text("no image")
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
        while (len(log.read_text().splitlines()) if log.is_file() else 0) < least and time.monotonic() < deadline:
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
    lines = [json.loads(line) for line in log.read_text().splitlines() if line.endswith("}")]
    done = [row["case"] for row in lines if row["status"] == "done"]
    assert len(done) == len(set(done)) == 24
    expected = sorted(p.name for p in (tmp_path / "whole").iterdir())
    assert sorted(p.name for p in out.iterdir()) == expected
    for file in (tmp_path / "whole").glob("*.nii.gz"):
        assert (out / file.name).read_bytes() == file.read_bytes()


def test_a_model_goes_to_nnunet_and_back_from_the_command_line(thirty, model, tmp_path):
    exported = segpipe("export", model, tmp_path / "nnunet", "--json")
    assert exported.returncode == 0, exported.stderr
    assert "130 becomes 1, 300 becomes 2" in json.loads(exported.stdout)["labels"]
    folder = json.loads(exported.stdout)["folder"]
    imported = segpipe("import", folder, tmp_path / "back.segpipe")
    assert imported.returncode == 0, imported.stderr
    assert "plain_unet" in imported.stdout
    image = thirty / "case_00.nii.gz"
    for name, given in (("a", model), ("b", tmp_path / "back.segpipe"), ("c", folder)):
        how = ["--device", "cpu", "--no-tta", "--engine", "torch", "--precision", "float32", "--save-uncertainty"]
        assert segpipe("predict", image, tmp_path / name, "--model", given, *how).returncode == 0
    a, b, c = (read_volume(tmp_path / name / "case_00.nii.gz").array for name in "abc")
    np.testing.assert_array_equal(b, c)
    np.testing.assert_array_equal(np.searchsorted([0, 130, 300], a), b)
    assert (tmp_path / "a" / "case_00_uncertainty.nii.gz").is_file()
    refused = segpipe("import", tmp_path / "a", tmp_path / "x.segpipe")
    assert (refused.returncode, "no trained nnU-Net model in it" in refused.stderr) == (1, True)
    assert segpipe("predict", image, tmp_path / "d", "--model", model, "--shard", "3/2").returncode == 2


def test_rules_are_chosen_kept_and_applied_from_the_command_line(thirty, model, tmp_path):
    grid = axis_grid(SHAPE)
    truth = np.zeros(SHAPE, dtype=np.uint16)
    truth[5:20, 5:20, 5:20] = 130
    noisy = truth.copy()
    noisy[30:33, 30:33, 30:33] = 130
    write_volume(tmp_path / "truth" / "a.nii.gz", truth, grid)
    write_volume(tmp_path / "found" / "a.nii.gz", noisy, grid)
    chosen = segpipe("postprocess", tmp_path / "found", "--references", tmp_path / "truth", "--model", model)
    assert chosen.returncode == 0, chosen.stderr
    assert "yes" in chosen.stdout
    assert ModelFile.read(model).postprocessing_json
    applied = segpipe("postprocess", tmp_path / "found", tmp_path / "clean", "--model", model)
    assert applied.returncode == 0, applied.stderr
    assert "1 of them changed" in applied.stdout
    np.testing.assert_array_equal(read_volume(tmp_path / "clean" / "a.nii.gz").array[0], truth)
    assert segpipe("postprocess", tmp_path / "found", "--model", model).returncode == 2
