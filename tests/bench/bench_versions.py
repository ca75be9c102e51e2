"""Seconds of `run` and `predict` by this checkout and by another one, in turn. One JSON line.

``run`` checks, plans, prepares and trains the dataset for some epochs and predicts what the fold held out; ``predict`` takes the first 20
images with the model of this checkout. Each is given three times to both checkouts in turn, on a new workspace and cache. ``processor``
is user and system time of the command and its children, which other work on the machine disturbs less than wall time; the figures are
medians, and the ratios are this checkout's to the other's.

git worktree add ../before REVISION
python tests/bench/bench_versions.py ../before ../shared/data/hippocampus [--epochs 2] [--rounds 3] [--scratch FOLDER]
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parents[2]
N_IMAGES = 20


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("other", type=Path)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scratch", type=Path, default=Path("bench_scratch"))
    options = parser.parse_args()
    scratch = (options.scratch / "versions").resolve()
    shutil.rmtree(scratch, ignore_errors=True)
    images = copied_images(options.dataset.resolve(), scratch / "images")
    checkouts = {"here": HERE, "other": options.other.resolve()}
    seen = {command: {name: [] for name in checkouts} for command in ("run", "predict")}
    model = scratch / "model.segpipe"
    for number in range(options.rounds):
        for name, checkout in checkouts.items():
            place = scratch / f"{number}_{name}"
            words = (
                "run",
                options.dataset.resolve(),
                "--work",
                place / "work",
                "--epochs",
                options.epochs,
                "--seed",
                0,
            )
            seen["run"][name].append(measured(checkout, place, *words))
            if not model.is_file():
                shutil.copy(next((place / "work" / "models").rglob("model.segpipe")), model)
        for name, checkout in checkouts.items():
            place = scratch / f"{number}_{name}"
            seen["predict"][name].append(measured(checkout, place, "predict", images, place / "out", "--model", model))
            shutil.rmtree(place)
    print(json.dumps({"images": N_IMAGES, "epochs": options.epochs, **{c: compared(s) for c, s in seen.items()}}))
    shutil.rmtree(scratch)


def copied_images(dataset, folder):
    """The first images of a dataset in a folder of their own."""
    folder.mkdir(parents=True)
    for image in sorted((dataset / "imagesTr").glob("[!.]*"))[:N_IMAGES]:
        shutil.copy(image, folder)
    return folder


def measured(checkout, home, *words):
    """Wall and processor seconds of a command of one checkout, with a cache of its own."""
    home.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "PYTHONPATH": str(checkout), "XDG_CACHE_HOME": str(home / "cache")}
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    command = [sys.executable, checkout / "cli.py", *map(str, words), "--quiet"]
    ended = subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=False)
    if ended.returncode not in (0, 3):
        raise SystemExit(f"{checkout}: segpipe {words[0]}: exit {ended.returncode}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"wall": time.perf_counter() - start, "processor": processor}


def compared(seen):
    """Medians of both checkouts, and this one's to the other's."""
    found = {}
    for kind in ("wall", "processor"):
        here, other = (statistics.median(run[kind] for run in seen[name]) for name in ("here", "other"))
        found[kind] = {"here_s": round(here, 2), "other_s": round(other, 2), "ratio": round(here / other, 3)}
    return found


if __name__ == "__main__":
    main()
