"""A folder of nnU-Net's teaches a student of this dataset's plan, from the command line, on real scans."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RECIPE = """
name = "tiny"
description = "for tests"
[planner]
base_features = 8
max_batch = 2
budget_gb = 1.0
[training]
iterations_per_epoch = 8
validation_batches = 1
"""


@pytest.mark.golden
@pytest.mark.data
@pytest.mark.e2e
@pytest.mark.slow
def test_nnunets_folder_is_a_teacher(golden, data, tmp_path):
    declared = json.loads((data / "hippocampus" / "dataset.json").read_text(encoding="utf-8"))
    declared["training"] = declared["training"][:5]
    (tmp_path / "hippocampus").mkdir()
    for pair in declared["training"]:
        for file in pair.values():
            target = tmp_path / "hippocampus" / file
            target.parent.mkdir(exist_ok=True)
            shutil.copy(data / "hippocampus" / file, target)
    (tmp_path / "hippocampus" / "dataset.json").write_text(json.dumps(declared), encoding="utf-8")
    (tmp_path / "tiny.toml").write_text(RECIPE, encoding="utf-8")
    teacher = golden / "nnunet" / "hippocampus_plain_3d" / "model"

    def segpipe(*words):
        command = [sys.executable, str(ROOT / "cli.py"), *map(str, words), "--quiet", "--work", str(tmp_path / "work")]
        return subprocess.run(command, capture_output=True, text=True, check=False, encoding="utf-8")

    planned = segpipe("plan", tmp_path / "hippocampus", "--recipe", tmp_path / "tiny.toml")
    assert planned.returncode == 0, planned.stderr
    done = segpipe(
        "distill", tmp_path / "hippocampus", "--teacher", teacher, "--student", "width=0.5", "--epochs", 1,
        "--no-tta", "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["failed"] == {}
    assert "model fold 0" in told["training"]["guidance"]["teachers"][0]
    assert told["training"]["guidance"]["soft_labels"]
    costs = {m["name"]: m for m in told["comparison"]["models"]}
    names = list(costs)
    assert len(names) == 2
    # nnU-Net's golden network is trained: it knows these cases better than students of eight steps.
    dice = {name: told["comparison"]["scores"][name]["by_label"]["mean of labels"]["dice"] for name in names}
    assert dice[names[0]] > 0.7
    assert dice[names[0]] > dice[names[1]]
    assert Path(told["models"][0]).is_file()
