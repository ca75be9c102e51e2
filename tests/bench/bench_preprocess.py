"""From raw files to training-ready arrays, against nnU-Net, in turn. One JSON line a dataset.

Both plan and prepare 3d_fullres from the same files, on the same cores, three times each; the ratio is that of the medians.
Memory is the largest sum over a process and its children of resident memory, sampled every 20 ms; pages that processes share count
once in each. ``large_ct`` is one CT of 512x512x700 voxels, resampled, by segpipe alone: its peak is what counts.

python tests/bench/bench_preprocess.py --nnunet ENVIRONMENT [--data FOLDER] [--scratch FOLDER] [DATASET ...]
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil

from segpipe.core.geometry import Grid
from segpipe.dataset.match import match_dataset
from segpipe.io.formats import read_header, write_volume

REPEATS = 3

# Shapes and spacings (z, y, x), drawn once; the target spacing is the median of these.
CT_LIKE = [
    (
        tuple(int(n) for n in np.array([220, 320, 320]) + np.random.default_rng(i).integers(-20, 21, 3)),
        (
            float((1.0, 1.25, 1.5, 2.0, 2.5)[i % 5]),
            *(float(v) for v in np.random.default_rng(i).uniform(0.65, 0.95, 2)),
        ),
    )
    for i in range(12)
]
# Two small ones beside it make the target spacing another than its own: every axis of the large one is resampled.
LARGE_CT = [
    ((700, 512, 512), (0.8, 0.75, 0.75)),
    ((60, 128, 128), (0.9, 0.7, 0.7)),
    ((60, 128, 128), (1.0, 0.72, 0.72)),
]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("datasets", nargs="*", default=["hippocampus", "cardiac_cine", "ct_like", "large_ct"])
    parser.add_argument(
        "--nnunet", type=Path, help="environment made by nnunet_env.sh; without it only segpipe is timed"
    )
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[3] / "shared" / "data")
    parser.add_argument("--scratch", type=Path, default=Path("bench_scratch"))
    parser.add_argument("--repeats", type=int, default=REPEATS)
    options = parser.parse_args()
    for name in options.datasets:
        drawn = {"ct_like": CT_LIKE, "large_ct": LARGE_CT}.get(name)
        source = options.scratch / name if drawn else options.data / name
        if drawn and not source.is_dir():
            for number, (shape, spacing) in enumerate(drawn):
                write_ct(source, number, shape, spacing)
        print(json.dumps(compare(name, source, options)), flush=True)


def compare(name, source, options):
    """Time both in turn on one dataset."""
    ours, theirs = [], []
    compared = options.nnunet and name != "large_ct"
    if compared:
        raw = options.scratch / "nnunet" / "raw"
        write_nnunet_raw(source, raw / "Dataset001_bench")
    for _ in range(options.repeats):
        work = options.scratch / "work"
        shutil.rmtree(work, ignore_errors=True)
        command = [Path(sys.executable).parent / "segpipe", "preprocess", source, "--work", work, "-c", "3d_fullres"]
        ours.append(measured(command, {}))
        if compared:
            for folder in ("preprocessed", "results"):
                shutil.rmtree(options.scratch / "nnunet" / folder, ignore_errors=True)
                (options.scratch / "nnunet" / folder).mkdir(parents=True)
            places = {
                f"nnUNet_{f}": str((options.scratch / "nnunet" / f).resolve())
                for f in ("raw", "preprocessed", "results")
            }
            tool = options.nnunet / "bin" / "nnUNetv2_plan_and_preprocess"
            theirs.append(measured([tool, "-d", "1", "-c", "3d_fullres", "-np", "2"], places))
    line = {
        "bench": f"raw files to training-ready, {name}",
        "segpipe_s": median(ours, 0),
        "segpipe_gb": median(ours, 1),
    }
    if theirs:
        line |= {"nnunet_s": median(theirs, 0), "nnunet_gb": median(theirs, 1)}
        line["ratio"] = round(line["nnunet_s"] / line["segpipe_s"], 1)
        line["memory_ratio"] = round(line["segpipe_gb"] / line["nnunet_gb"], 2)
    return line


def median(runs, which):
    return round(statistics.median(run[which] for run in runs), 2)


def measured(command, environment):
    """Seconds and peak GB of a command with its children."""
    start, peak = time.perf_counter(), 0
    process = psutil.Popen(
        [str(c) for c in command], env=os.environ | environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    while process.poll() is None:
        peak = max(peak, resident(process))
        time.sleep(0.02)
    if process.returncode:
        raise RuntimeError(f"{command} ended with {process.returncode}: {process.stderr.read().decode()[-2000:]}")
    return time.perf_counter() - start, peak / 1e9


def resident(process):
    total = 0
    try:
        for one in [process, *process.children(recursive=True)]:
            try:
                total += one.memory_info().rss
            except psutil.NoSuchProcess:
                continue
    except psutil.NoSuchProcess:
        pass
    return total


def write_ct(folder, number, shape, spacing):
    """A body with three organs in air, in Hounsfield units."""
    rng = np.random.default_rng(number)
    axes = [np.linspace(-1, 1, n, dtype=np.float32).reshape(np.roll((-1, 1, 1), a)) for a, n in enumerate(shape)]
    labels = np.zeros(shape, dtype=np.uint8)
    for value in (1, 2, 3):
        centre, radius = rng.uniform(-0.4, 0.4, 3), rng.uniform(0.12, 0.3, 3)
        labels[sum(((a - c) / r) ** 2 for a, c, r in zip(axes, centre, radius, strict=True)) < 1] = value
    body = ((axes[1] / 0.7) ** 2 + (axes[2] / 0.9) ** 2 < 1)[0]
    image = np.empty(shape, dtype=np.int16)
    for z, plane in enumerate(labels):
        image[z] = np.where(body, 40 + 60 * plane.astype(np.int16), -1000) + rng.normal(0, 15, plane.shape)
    affine = np.array([[0, 0, 1.0, 0], [0, 1.0, 0, 0], [1.0, 0, 0, 0], [0, 0, 0, 1]])
    grid = Grid.from_affine(shape, affine @ np.diag([*spacing, 1]))
    write_volume(folder / "images" / f"ct_{number:02d}.nii.gz", image, grid)
    write_volume(folder / "labels" / f"ct_{number:02d}.nii.gz", labels, grid)
    declared = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "a": 1, "b": 2, "c": 3}}
    (folder / "dataset.json").write_text(json.dumps(declared), encoding="utf-8")


def write_nnunet_raw(source, folder):
    """Write the same files in nnU-Net's raw layout, as links."""
    shutil.rmtree(folder.parent, ignore_errors=True)
    dataset = match_dataset(source)
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True)
    for case in dataset.cases:
        for channel, image in enumerate(case.images):
            (folder / "imagesTr" / f"{case.id}_{channel:04d}.nii.gz").symlink_to(image.path)
        (folder / "labelsTr" / f"{case.id}.nii.gz").symlink_to(case.label.path)
    assert all(read_header(c.images[0].path).n_channels == 1 for c in dataset.cases)
    declared = {
        "channel_names": {str(i): n for i, n in enumerate(dataset.channel_names)},
        "labels": {"background": 0, **{t.name: t.paint for t in dataset.labels.targets}},
        "numTraining": len(dataset.cases),
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(declared), encoding="utf-8")


if __name__ == "__main__":
    main()
