"""One label made rare: what weighted losses and sampling by label do against the default.

Of the cases that are trained on, nine in ten are cut off where the rare label begins, so that they do not hold it; held-out cases
are whole. One JSON line an arm and seed, and one a comparison.

    python tests/bench/bench_rare_label.py --label 2 [--iterations 400] [--seeds 0 1 2] [--together 2] [--arm NAME ...]
"""

import argparse
import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np

from segpipe.core.volume import Volume
from segpipe.dataset.match import match_dataset
from segpipe.io.formats import read_volume, write_volume
from tests.bench.bench_networks import run

DICE = '[[training.loss]]\nname = "dice"\n'
BALANCED = DICE + '[[training.loss]]\nname = "cross_entropy"\nclass_weights = "balanced"\n'
ARMS = {
    "default": "",
    "balanced_cross_entropy": BALANCED,
    "median_frequency_cross_entropy": BALANCED.replace("balanced", "median_frequency"),
    "focal_tversky": '[[training.loss]]\nname = "tversky"\nexponent = 0.75\n[[training.loss]]\nname = "focal"\n',
    "by_label": "",
    "balanced_and_by_label": BALANCED,
}
BY_LABEL = ("by_label", "balanced_and_by_label")
KEPT_WHOLE, HELD_OUT = 10, 5
"""Of every so many cases one is kept whole, or held out."""


def main() -> None:
    options = arguments()
    scratch, threads = options.scratch, max((os.cpu_count() or 1) // options.together, 1)
    made = make_rare(options.data / "hippocampus", scratch / "dataset", options.label)
    prepared = threading.Lock()

    def one(task: tuple[str, int]) -> dict:
        arm, seed = task
        work = scratch / "work" / f"{arm}_{seed}"
        where = [str(scratch / "dataset"), "--work", str(work), "--quiet"]
        with prepared:
            run(["plan", *where, "--recipe", str(recipe(scratch, arm, options.iterations))], threads)
        trained = json.loads(run(["train", *where, "--fold", "all", "--seed", str(seed), "--json"], threads)[0])
        predicted = scratch / "predicted" / f"{arm}_{seed}"
        run(
            [
                "predict",
                str(scratch / "held_out" / "images"),
                str(predicted),
                "-m",
                trained["model"],
                "--no-tta",
                "--quiet",
            ],
            threads,
        )
        scores = json.loads(
            run(["evaluate", str(predicted), str(scratch / "held_out" / "labels"), "--json"], threads)[0]
        )
        dice = {name: round(s["mean_dice"], 4) for name, s in scores["by_label"].items()}
        missed = {name: s["n_missed"] for name, s in scores["by_label"].items()}
        line = {"benchmark": "rare_label", "arm": arm, "seed": seed, **made, "iterations": options.iterations}
        print(json.dumps(line | {"dice": dice, "missed": missed}), flush=True)
        return {"arm": arm, "dice": dice}

    with ThreadPoolExecutor(options.together) as pool:
        done = list(pool.map(one, [(arm, seed) for seed in options.seeds for arm in options.arm or ARMS]))
    mean = {
        arm: {name: np.mean([d["dice"][name] for d in done if d["arm"] == arm]) for name in done[0]["dice"]}
        for arm in dict.fromkeys(d["arm"] for d in done)
    }
    for arm, dice in mean.items():
        # A difference: the default may not find the label at all.
        gain = (
            {name: round(float(d - mean["default"][name]), 4) for name, d in dice.items()}
            if "default" in mean
            else None
        )
        shown = {name: round(float(d), 4) for name, d in dice.items()}
        line = {
            "benchmark": "rare_label",
            "arm": arm,
            "seeds": len(options.seeds),
            "dice": shown,
            "gain_over_default": gain,
        }
        print(json.dumps(line))


def make_rare(source: Path, folder: Path, label: int) -> dict:
    """Write the training cases, most of them cut, and the held-out ones beside them; how many of each."""
    counts = {"whole": 0, "cut": 0, "held_out": 0}
    for number, case in enumerate(match_dataset(source).cases):
        image, labels = read_volume(case.images[0].path), read_volume(case.label.path)
        held_out = number % HELD_OUT == 0
        target = folder.parent / "held_out" if held_out else folder
        if held_out:
            counts["held_out"] += 1
        elif counts["whole"] * (KEPT_WHOLE - 1) <= counts["cut"]:
            counts["whole"] += 1
        else:
            counts["cut"] += 1
            image, labels = without(image, labels, label)
        for kind, volume in (("images", image), ("labels", labels)):
            (target / kind).mkdir(parents=True, exist_ok=True)
            grid = replace(volume.grid, shape=volume.array.shape[1:])
            write_volume(target / kind / f"{case.id}.nii.gz", volume.array[0], grid)
    return counts


def without(image: Volume, labels: Volume, label: int) -> tuple[Volume, Volume]:
    """Cut both at the first plane across y that holds the label, on the side of it that keeps more."""
    rows = np.flatnonzero((labels.array[0] == label).any(axis=(0, 2)))
    before, after = int(rows[0]), labels.array.shape[2] - 1 - int(rows[-1])
    kept = slice(0, before) if before >= after else slice(int(rows[-1]) + 1, None)
    assert not (labels.array[0][:, kept] == label).any()

    def cut(volume: Volume) -> Volume:
        # Where a cut image lies in space is of no concern here.
        array = np.ascontiguousarray(volume.array[:, :, kept])
        return Volume(array, replace(volume.grid, shape=array.shape[1:]))

    return cut(image), cut(labels)


def recipe(scratch: Path, arm: str, iterations: int) -> Path:
    cpu = (Path(__file__).parents[2] / "plans" / "cpu.toml").read_text(encoding="utf-8")
    epochs = f"epochs = {max(iterations // 100, 1)}\niterations_per_epoch = 100"
    text = cpu.replace('name = "cpu"', f'name = "{arm}"').replace("epochs = 50", epochs)
    text = text.replace("patches_per_case = 4\n", "")
    if arm in BY_LABEL:
        text += 'foreground_by = "label"\n'
    path = scratch / f"{arm}.toml"
    path.write_text(text + ARMS[arm], encoding="utf-8")
    return path


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[3] / "shared" / "data")
    parser.add_argument("--scratch", type=Path, default=Path("bench_scratch"))
    parser.add_argument("--label", type=int, default=2)
    parser.add_argument("--iterations", type=int, default=400)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--together", type=int, default=1)
    parser.add_argument("--arm", action="append", choices=list(ARMS))
    return parser.parse_args()


if __name__ == "__main__":
    main()
