"""A training iteration, data and augmentation included, against nnU-Net's own trainer, in turn. One JSON line.

The network, the patch and the batch are the same: both plan hippocampus's 3d_fullres from the same files (patch 40x56x40, batch 3, 32
features). The ratio is that of the medians over all rounds, after three iterations that are not counted in each.

python tests/bench/bench_training.py --nnunet ENVIRONMENT [--data FOLDER] [--scratch FOLDER] [--rounds N] [--iterations N]
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import time
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import segpipe
from segpipe.core.workspace import Workspace
from segpipe.execution.device import choose_runtime
from segpipe.execution.torch_state import training_state
from segpipe.planning.schema import Plan
from segpipe.training.fold import make_trainer
from segpipe.training.job import Listener
from segpipe.training.settings import FoldSettings
from segpipe.workflows.arrays import prepare_arrays
from segpipe.workflows.fold import FoldWork, job_of
from segpipe.workflows.project import Project
from tests.bench.bench_preprocess import write_nnunet_raw

WARM_UP = 3


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--nnunet", type=Path, required=True, help="environment made by nnunet_env.sh")
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[3] / "shared" / "data")
    parser.add_argument("--scratch", type=Path, default=Path("bench_scratch"))
    parser.add_argument("--device", default="auto", help="of segpipe; nnU-Net takes a GPU where there is one")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--iterations", type=int, default=8)
    options = parser.parse_args()
    source = options.data / "hippocampus"
    workspace = Workspace(options.scratch / "training")
    shutil.rmtree(workspace.root, ignore_errors=True)
    segpipe.plan(source, work=workspace.root)
    places = nnunet_places(source, options.scratch / "nnunet_timed", options)
    runtime, ours, theirs, waited = choose_runtime(options.device), [], [], []
    for _ in range(options.rounds):
        seconds, share = timed(workspace, runtime, options.iterations)
        ours += seconds
        waited.append(share)
        theirs += json.loads(nnunet(["time", "--iterations", str(options.iterations)], places, options))["seconds"]
    a, b = statistics.median(ours), statistics.median(theirs)
    print(
        json.dumps({
            "bench": "training iteration, hippocampus 3d_fullres, batch 3 of 40x56x40, 32 features", "runtime": runtime.describe(),
            "segpipe_s": round(a, 3), "nnunet_s": round(b, 3), "ratio": round(b / a, 2), "data_wait_share": round(max(waited), 4),
        })
    )  # fmt: skip


class EnoughError(Exception):
    """The iterations that were wanted are done."""


def timed(workspace, runtime, n):
    """Seconds of each iteration of the real loop, and the share of them that waited for data."""
    plan = Plan.read(workspace.plan)
    project = Project(workspace.root, workspace)
    index = prepare_arrays(project, plan, "3d_fullres")
    job = job_of(FoldWork(project, plan, "3d_fullres", FoldSettings(epochs=1), index))
    moments = []

    def on_iteration(_):
        moments.append(time.perf_counter())
        if len(moments) == n + WARM_UP:
            raise EnoughError

    trainer = make_trainer(job, runtime, Listener(on_iteration=on_iteration))
    with suppress(EnoughError), training_state(runtime.device, deterministic=False):
        trainer.run(resume=False)
    shutil.rmtree(job.folder.root, ignore_errors=True)
    progress = trainer.state.progress
    seconds = [b - a for a, b in pairwise(moments)]
    return seconds[WARM_UP - 1 :], progress.waited_s / progress.elapsed_s


def nnunet_places(source, folder, options):
    """Plan and prepare with nnU-Net; returns the folders it is told by its environment."""
    root = folder.resolve()
    places = {f"nnUNet_{f}": str(root / f) for f in ("raw", "preprocessed", "results")}
    if not (root / "preprocessed" / "Dataset001_bench").is_dir():
        write_nnunet_raw(source, root / "raw" / "Dataset001_bench")
        tool = options.nnunet / "bin" / "nnUNetv2_plan_and_preprocess"
        subprocess.run(
            [tool, "-d", "1", "-c", "3d_fullres", "-np", "2"], env=os.environ | places, check=True, capture_output=True
        )
    return places


def nnunet(arguments, places, options):
    """Run nnU-Net's trainer by its own Python; returns its JSON line."""
    script = Path(__file__).with_name("nnunet_training.py")
    done = subprocess.run(
        [options.nnunet / "bin" / "python", script, *arguments],
        env=os.environ | places,
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return done.stdout.strip().splitlines()[-1]


if __name__ == "__main__":
    main()
