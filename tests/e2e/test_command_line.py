"""Commands as a user types them: exit codes, what is printed, what is written."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.helpers.command_line import segpipe as here
from tests.phantoms import write_small_dataset

ROOT = Path(__file__).parents[2]
SEGPIPE = [sys.executable, str(ROOT / "cli.py")]
pytestmark = pytest.mark.e2e
RECIPE = """
name = "tiny"
description = "for tests"
[planner]
base_features = 4
max_batch = 2
[training]
optimizer = "adamw"
learning_rate = 0.01
iterations_per_epoch = 10
validation_batches = 2
"""


def segpipe(*arguments, cwd=None) -> subprocess.CompletedProcess:
    return subprocess.run(
        [*SEGPIPE, *map(str, arguments)], capture_output=True, text=True, cwd=cwd, timeout=600, encoding="utf-8"
    )


def test_a_run_that_is_terminated_is_finished_with_resume(tmp_path):
    tiny_recipe = tmp_path / "tiny.toml"
    tiny_recipe.write_text(RECIPE, encoding="utf-8")
    folder, work = write_small_dataset(tmp_path / "dataset"), tmp_path / "work"
    command = [
        *SEGPIPE,
        "run",
        folder,
        "--recipe",
        tiny_recipe,
        "--epochs",
        9,
        "--work",
        work,
        "--device",
        "cpu",
        "--jobs",
        1,
    ]
    process = subprocess.Popen(
        list(map(str, command)), stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8"
    )
    log = work / "models/3d_fullres/tiny/fold_0/log.jsonl"
    deadline = time.monotonic() + 120
    while not log.is_file() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert "continue with --resume" in errors
    assert "Traceback" not in errors
    result = segpipe(*command[2:], "--resume")
    assert result.returncode == 0, result.stderr
    assert len(log.read_text(encoding="utf-8").splitlines()) == 9


def test_environment_variables_change_nothing(tmp_path):
    folder = write_small_dataset(tmp_path / "dataset", n_cases=3)
    plain = here("plan", folder, "--json", "--work", tmp_path / "a", "--jobs", 1).stdout
    noisy = subprocess.run(
        [*SEGPIPE, "plan", str(folder), "--json", "--work", str(tmp_path / "b"), "--jobs", "1"], capture_output=True, text=True,
        env=os.environ | {"nnUNet_raw": "/x", "SEGPIPE_WORK": "/y"}, encoding="utf-8")  # fmt: skip
    assert noisy.stdout == plain


@pytest.mark.parametrize(("arguments", "code"), [(["check", "gone"], 1), (["fly"], 2), (["--version"], 0)])
def test_the_code_of_a_command_is_the_code_of_its_process(tmp_path, arguments, code):
    result = segpipe(*arguments, cwd=tmp_path)
    assert result.returncode == code, result.stderr
    assert "Traceback" not in result.stderr
