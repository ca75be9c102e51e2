"""Everything that runs on a GPU, on a simulated one: in processes of their own, since torch's simulated device cannot be taken back."""

import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

ROOT = Path(__file__).parents[2]
GROUPS = {
    "training": ["tests/simulated/test_device.py", "tests/simulated/test_training.py"],
    "networks and prediction": [f"tests/simulated/test_{name}.py" for name in ("networks", "prediction")],
    "distillation, commands and benchmark": [
        f"tests/simulated/test_{name}.py" for name in ("distillation", "commands", "bench")
    ],
    "tests marked gpu": ["-p", "tests.simulated.plugin", "-m", "gpu", "tests/unit", "tests/integration"],
}


def test_every_file_is_in_a_group():
    grouped = {word for words in GROUPS.values() for word in words if word.endswith(".py")}
    assert grouped == {f"tests/simulated/{p.name}" for p in (ROOT / "tests/simulated").glob("test_*.py")}


@pytest.fixture(scope="module")
def processes(tmp_path_factory):
    """All groups at once, one thread each: pytest's process and its report."""
    folder = tmp_path_factory.mktemp("simulated")
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    started = {}
    for name, words in GROUPS.items():
        report = folder / f"{name}.xml"
        asked = [sys.executable, "-m", "pytest", "-n", "0", "-p", "no:cacheprovider", f"--junitxml={report}", *words]
        with report.with_suffix(".txt").open("w", encoding="utf-8") as told:
            process = subprocess.Popen(asked, cwd=ROOT, env=os.environ | threads, stdout=told, stderr=told)
        started[name] = process, report
    yield started
    for process, _ in started.values():
        process.kill()
        process.wait()


@pytest.mark.slow
@pytest.mark.parametrize("name", GROUPS)
def test_what_runs_on_a_gpu_runs_on_a_simulated_one(processes, name):
    process, report = processes[name]
    process.wait(timeout=600)
    assert process.returncode == 0, report.with_suffix(".txt").read_text(encoding="utf-8")[-20_000:]
    (suite,) = ElementTree.parse(report).getroot()
    assert int(suite.get("tests")) >= (11 if name == "tests marked gpu" else 40)
    # The least torch of pyproject.toml has what the simulation needs: a test that is left out is a fault.
    assert int(suite.get("skipped")) == 0 or torch.cuda.is_available()
