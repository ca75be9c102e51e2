"""Predict a folder with nnU-Net and with segpipe, in turn, from the same trained-model folder of nnU-Net's.

    python tests/bench/bench_predict.py MODEL_FOLDER IMAGES --nnunet NNUNET_ENV/bin [--tta] [--folds 0] [--workers 1 3] [--student MODEL]
        [-- segpipe options]

With --student segpipe predicts with that model instead: a distilled one against its teacher, end to end.
One JSON line: seconds of both as whole processes, nnU-Net's with the best of its worker settings (of preprocessing and of export),
peak memory of all their processes together, and how much the masks differ: share of voxels, mean
Dice, and the lowest Dice of a label in a case.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil

from segpipe.io.formats import IMAGE_ENDINGS, read_volume


def main() -> None:
    options, segpipe_options = arguments()
    with tempfile.TemporaryDirectory() as scratch:
        tta = [] if options.tta else ["--disable_tta"]
        runs = {}
        for workers in options.workers:
            theirs = Path(scratch) / f"nnunet_{workers}"
            command = [
                str(options.nnunet / "nnUNetv2_predict_from_modelfolder"),
                "-i",
                str(options.images),
                "-o",
                str(theirs),
            ]
            command += ["-m", str(options.model), "-f", *options.folds, "-device", options.device, *tta]
            runs[workers] = timed([*command, "-npp", str(workers), "-nps", str(workers)])
        ours = Path(scratch) / "segpipe"
        command = [str(Path(sys.executable).with_name("segpipe")), "predict", str(options.images), str(ours), "--quiet"]
        chosen = (
            [str(options.student)]
            if options.student
            else [str(options.model), *(f"--folds={f}" for f in options.folds)]
        )
        command += ["--model", *chosen, "--device", options.device]
        command += ["--tta" if options.tta else "--no-tta", *segpipe_options]
        seconds = [timed(command)]
        if options.twice:
            # Compiled models are kept: the second time is what every later batch takes.
            ours = ours.with_name("again")
            seconds.append(timed([*command[:3], str(ours), *command[4:]]))
        best = min(runs, key=lambda w: runs[w][0])
        line = {
            "benchmark": "predict", "model": options.model.name, "images": options.images.name, "tta": options.tta,
            "options": segpipe_options, "student": options.student and options.student.parent.name,
            "nnunet_s": {str(w): round(r[0], 1) for w, r in runs.items()},
            "nnunet_gb": {str(w): round(r[1], 2) for w, r in runs.items()},
            "segpipe_s": [round(s, 1) for s, _ in seconds], "segpipe_gb": [round(g, 2) for _, g in seconds],
            "times_faster": [round(runs[best][0] / s, 2) for s, _ in seconds],
            "share_of_memory": round(max(g for _, g in seconds) / min(r[1] for r in runs.values()), 2),
            **agreement(ours, theirs),
        }  # fmt: skip
        print(json.dumps(line))


def timed(command: list[str]) -> tuple[float, float]:
    """Seconds that a command takes, and the most memory (GB, shared pages counted once) that it and its children held."""
    folders = dict.fromkeys(("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"), tempfile.gettempdir())
    start, peak = time.perf_counter(), 0
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=os.environ | folders)
        while process.poll() is None:
            peak = max(peak, held(process.pid))
            time.sleep(0.1)
        elapsed = time.perf_counter() - start
        if process.returncode:
            output.seek(0)
            raise SystemExit(f"{' '.join(command)}\nfailed ({process.returncode}):\n{output.read().decode()[-2000:]}")
    return elapsed, peak / 1e9


def held(pid: int) -> int:
    total = 0
    with suppress(psutil.Error):
        parent = psutil.Process(pid)
        for process in (parent, *parent.children(recursive=True)):
            with suppress(psutil.Error):
                total += process.memory_full_info().pss
    return total


def agreement(ours: Path, theirs: Path) -> dict[str, float]:
    """How two folders of masks differ."""
    differing, voxels, dice = 0, 0, []
    for file in sorted(p for p in theirs.iterdir() if p.name.endswith(IMAGE_ENDINGS)):
        a, b = read_volume(ours / file.name).array, read_volume(file).array
        differing, voxels = differing + int((a != b).sum()), voxels + a.size
        values = [v for v in np.unique(np.concatenate((np.unique(a), np.unique(b)))) if v]
        dice += [2 * float(((a == v) & (b == v)).sum()) / float((a == v).sum() + (b == v).sum()) for v in values]
    return {
        "differing_share": round(differing / voxels, 7),
        "mean_dice": round(float(np.mean(dice)), 5),
        "lowest_dice": round(min(dice), 5),
    }


def arguments() -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("--nnunet", type=Path, required=True, help="bin folder of an environment with nnU-Net")
    parser.add_argument("--folds", nargs="+", default=["0"])
    parser.add_argument("--student", type=Path, help="model that segpipe predicts with, instead of the folder's")
    parser.add_argument("--workers", nargs="+", type=int, default=[1, 3])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--tta", action="store_true")
    parser.add_argument("--twice", action="store_true")
    given = sys.argv[1:]
    cut = given.index("--") if "--" in given else len(given)
    return parser.parse_args(given[:cut]), given[cut + 1 :]


if __name__ == "__main__":
    main()
