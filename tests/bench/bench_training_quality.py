"""Dice on held-out cases after the same number of iterations. One JSON line a comparison.

same_as_nnunet: hippocampus, fold 0, nnU-Net's plan with narrower networks, against nnU-Net's own trainer: same network, batch, optimiser
and number of iterations, both with mirroring at inference. The optimiser is that of the recipe for CPUs: with nnU-Net's momentum of 0.99
neither settles in the thousand iterations that a CPU does in reasonable time (docs/experiments.md).

sparse: hippocampus with one slice in five labelled, the others ignored, against all slices labelled; the same held-out cases, scored on
all slices. Both by the recipe for CPUs.

view: a dataset by the recipe for CPUs, fold 0, half an hour, with the wide view or at full resolution: Dice and HD95 before any
post-processing. cardiac_cine holds out one patient of five.

python tests/bench/bench_training_quality.py same_as_nnunet --nnunet ENVIRONMENT [--seeds 0 1 2] [--iterations 400] [--features 12]
python tests/bench/bench_training_quality.py sparse [--iterations 800]
python tests/bench/bench_training_quality.py view [--dataset cardiac_cine] [--configuration 3d_fullres] [--minutes 30]
"""

import argparse
import json
import shutil
from pathlib import Path

import numpy as np

import segpipe
from segpipe.core.workspace import Workspace
from segpipe.dataset.match import match_dataset
from segpipe.io.formats import read_volume, write_volume
from tests.bench.bench_training import nnunet, nnunet_places

EPOCHS = 10
LEARNING_RATE, MOMENTUM = 0.03, 0.9
LABELLED_EVERY = 5
IGNORED = 3


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["same_as_nnunet", "sparse", "view"])
    parser.add_argument("--nnunet", type=Path, help="environment made by nnunet_env.sh")
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[3] / "shared" / "data")
    parser.add_argument("--scratch", type=Path, default=Path("bench_scratch"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--iterations", type=int)
    parser.add_argument("--dataset", default="cardiac_cine")
    parser.add_argument("--configuration", help="the recipe's own choice unless given")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--features", type=int, default=12)
    options = parser.parse_args()
    print(
        json.dumps({"same_as_nnunet": same_as_nnunet, "sparse": sparse, "view": view}[options.what](options)),
        flush=True,
    )


def same_as_nnunet(options):
    source, iterations = options.data / "hippocampus", options.iterations or 400
    recipe = write_recipe(options.scratch / "narrow.toml", options.features, iterations)
    places = nnunet_places(source, options.scratch / "nnunet_narrow", options)
    plans = Path(places["nnUNet_preprocessed"]) / "Dataset001_bench" / "nnUNetPlans.json"
    theirs = json.loads(plans.read_text(encoding="utf-8"))
    widths = theirs["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]
    widths["features_per_stage"] = [options.features * 2**i for i in range(len(widths["features_per_stage"]))]
    plans.write_text(json.dumps(theirs), encoding="utf-8")
    line = {
        "bench": f"hippocampus fold 0, {iterations} iterations, {options.features} features",
        "segpipe": [],
        "nnunet": [],
    }
    for seed in options.seeds:
        line["segpipe"].append(trained(source, options.scratch / f"seed_{seed}", recipe, seed=seed, tta=True))
        arguments = ["train", "--iterations", str(iterations), "--seed", str(seed)]
        arguments += ["--learning-rate", str(LEARNING_RATE), "--momentum", str(MOMENTUM)]
        line["nnunet"].append(round(json.loads(nnunet(arguments, places, options))["mean"], 4))
    return line | {"difference": round(float(np.mean(line["segpipe"]) - np.mean(line["nnunet"])), 4)}


def sparse(options):
    """The held-out cases of both are the same; the sparsely labelled ones are scored against the whole labels."""
    source, iterations = options.data / "hippocampus", options.iterations or 800
    recipe = write_recipe(options.scratch / "short.toml", 12, iterations)
    thinned = options.scratch / "hippocampus_sparse"
    write_sparse(source, thinned)
    whole = trained(source, options.scratch / "whole", recipe, tta=False)
    trained(thinned, options.scratch / "sparse", recipe, tta=False)
    predictions = next((options.scratch / "sparse" / "predictions").rglob("fold_0"))
    references = {c.id: c.label.path for c in match_dataset(source).cases}
    scored = options.scratch / "references"
    shutil.rmtree(scored, ignore_errors=True)
    scored.mkdir()
    for file in predictions.glob("*.nii.gz"):
        (scored / file.name).symlink_to(references[file.name.removesuffix(".nii.gz")].resolve())
    dice = segpipe.evaluate(predictions, scored).mean_dice
    return {
        "bench": f"hippocampus fold 0, {iterations} iterations, one slice in {LABELLED_EVERY} labelled",
        "all_labelled": whole, "sparse": round(dice, 4), "ratio": round(dice / whole, 3),
    }  # fmt: skip


def view(options):
    """Train as `segpipe train DATASET --minutes 30` does on a CPU, and score the held-out cases as they come from the network."""
    chosen = options.configuration
    work = options.scratch / f"{options.dataset}_{chosen or 'own'}"
    shutil.rmtree(work, ignore_errors=True)
    segpipe.plan(options.data / options.dataset, work=work, recipe="cpu")
    done = segpipe.train(
        options.data / options.dataset, work=work, configuration=chosen, minutes=options.minutes, device="cpu"
    )
    scored = done.held_out.evaluation
    return {
        "bench": f"{options.dataset} fold 0, {options.minutes:g} minutes, {chosen or 'wide view'}",
        "dice": {name: round(s.mean_dice, 4) for name, s in scored.by_label.items()},
        "mean_dice": round(scored.mean_dice, 4), "mean_hd95_mm": round(scored.mean_hd95_mm, 2),
        "cases": len(scored.cases), "iterations": done.record.iterations,
    }  # fmt: skip


def trained(source, work, recipe, *, seed=0, tta):
    shutil.rmtree(work, ignore_errors=True)
    segpipe.plan(source, work=work, recipe=recipe)
    done = segpipe.train(source, work=Workspace(work).root, epochs=EPOCHS, seed=seed, tta=tta)
    return round(done.held_out.evaluation.mean_dice, 4)


def write_recipe(path, features, iterations):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        f"""name = "bench"
description = "of a benchmark"
[planner]
base_features = {features}
[training]
learning_rate = {LEARNING_RATE}
momentum = {MOMENTUM}
iterations_per_epoch = {iterations // EPOCHS}
validation_batches = 2
""",
        encoding="utf-8",
    )
    return path


def write_sparse(source, folder):
    """The same images; labels that are known in every fifth slice of the coarsest direction of the array only."""
    shutil.rmtree(folder, ignore_errors=True)
    dataset = match_dataset(source)
    for case in dataset.cases:
        (folder / "images").mkdir(parents=True, exist_ok=True)
        (folder / "images" / f"{case.id}.nii.gz").symlink_to(case.images[0].path.resolve())
        labels = read_volume(case.label.path)
        known = labels.array[0].astype(np.uint8)
        unknown = np.ones(len(known), dtype=bool)
        unknown[LABELLED_EVERY // 2 :: LABELLED_EVERY] = False
        known[unknown] = IGNORED
        write_volume(folder / "labels" / f"{case.id}.nii.gz", known, labels.grid)
    declared = {t.name: t.paint for t in dataset.labels.targets}
    (folder / "dataset.json").write_text(
        json.dumps({"channel_names": {"0": "MRI"}, "labels": {"background": 0, **declared, "ignore": IGNORED}}),
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()
