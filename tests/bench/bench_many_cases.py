"""Thousands of small cases: seconds and memory of `check` and `predict`, and how they grow. One JSON line.

Cases of 16x16x16 voxels are drawn, a model is trained on ten of them for one epoch, and the commands run as a user gives them. Memory is
the largest sum over a process and its children of resident memory, sampled every 50 ms; pages that processes share count once in each.
``growth`` is the ratio of the seconds of the larger to those of the smaller number of cases; ten times as many cases in ten times the
seconds is linear.

python tests/bench/bench_many_cases.py [--check 300 3000] [--predict 200 2000] [--scratch FOLDER]
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil

from segpipe.core.geometry import Grid
from segpipe.io.formats import write_volume

CLI = Path(__file__).parents[2] / "cli.py"
SHAPE = (16, 16, 16)
TRAINED_ON = 10


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--check", type=int, nargs=2, default=(300, 3000))
    parser.add_argument("--predict", type=int, nargs=2, default=(200, 2000))
    parser.add_argument("--scratch", type=Path, default=Path("bench_scratch"))
    options = parser.parse_args()
    scratch = options.scratch / "many_cases"
    shutil.rmtree(scratch, ignore_errors=True)
    model = trained(scratch)
    checks = [checked(scratch, n) for n in options.check]
    predictions = [predicted(scratch, n, model) for n in options.predict]
    found = {"check": with_growth(checks), "predict": with_growth(predictions)}
    print(json.dumps({"shape": SHAPE, **found}))
    shutil.rmtree(scratch)


def draw(folder, n):
    """Write a dataset of n cases, each a noisy ball."""
    grid = Grid(SHAPE, (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), ((0.0, 0.0, 1.0), (0.0, 1.0, 0.0), (1.0, 0.0, 0.0)))
    axes = np.ogrid[tuple(slice(0, size) for size in SHAPE)]
    for case in range(n):
        rng = np.random.default_rng(case)
        label = (sum((a - c) ** 2 for a, c in zip(axes, rng.uniform(6, 10, 3), strict=True)) < 16).astype(np.uint8)
        image = (100 * label + 20 * rng.standard_normal(SHAPE)).astype(np.float32)
        write_volume(folder / "images" / f"case{case:05d}.nii.gz", image, grid)
        write_volume(folder / "labels" / f"case{case:05d}.nii.gz", label, grid)


def trained(scratch):
    """A model of one epoch; the time of prediction does not depend on what it learnt."""
    draw(scratch / "train", TRAINED_ON)
    run("run", scratch / "train", "--work", scratch / "w_train", "--epochs", 1, "--no-tta")
    return next((scratch / "w_train" / "models").rglob("model.segpipe"))


def checked(scratch, n):
    draw(scratch / f"check_{n}", n)
    return {"cases": n, **run("check", scratch / f"check_{n}", "--work", scratch / f"w_check_{n}")}


def predicted(scratch, n, model):
    draw(scratch / f"predict_{n}", n)
    output = scratch / f"out_{n}"
    measured = run("predict", scratch / f"predict_{n}" / "images", output, "--model", model, "--no-tta")
    n_done = len(list(output.glob("*.nii.gz")))
    if n_done != n:
        raise SystemExit(f"{n_done} of {n} cases predicted")
    return {"cases": n, **measured}


def with_growth(measured):
    few, many = measured
    return {"runs": measured, "growth": round(many["seconds"] / few["seconds"], 2)}


def run(*words):
    """Run a command; its wall time and the largest memory of it and its children."""
    start, peak = time.perf_counter(), 0
    process = psutil.Popen([sys.executable, str(CLI), *map(str, words), "--quiet"], stdout=subprocess.DEVNULL)
    while process.poll() is None:
        with suppress(psutil.NoSuchProcess):
            peak = max(peak, sum(p.memory_info().rss for p in [process, *process.children(recursive=True)]))
        time.sleep(0.05)
    if process.returncode != 0:
        raise SystemExit(f"segpipe {words[0]}: exit {process.returncode}")
    return {"seconds": round(time.perf_counter() - start, 2), "peak_gib": round(peak / 2**30, 3)}


if __name__ == "__main__":
    main()
