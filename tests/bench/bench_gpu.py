"""Training and prediction on a GPU: speed against nnU-Net's network in nnU-Net's loop, the numbers of the CPU, and no hidden waits.

    python tests/bench/pack_gpu.py FOLDER --hippocampus DATASET --python 3.12        # on any machine with segpipe installed
    python -m pip install --no-index --no-deps --target site FOLDER/wheels/*.whl     # on the machine with the GPU
    PYTHONPATH=site:. python tests/bench/bench_gpu.py FOLDER

The machine needs torch, numpy, this checkout and the packed folder, and nothing else. It takes ten minutes at most: what no time is left
for is left out, and the line says so. `--device cpu --rehearse` runs every part in small.

One JSON line: seconds a step and a volume, ratios to nnU-Net's loop, differences to the CPU, and what was left out with the reason.
"""

import argparse
import json
import logging
import shutil
import signal
import sys
import tempfile
import time
import warnings
from contextlib import contextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from torch import nn

from segpipe.core.workspace import Workspace
from segpipe.dataset.splits import Splits
from segpipe.execution.device import Runtime, choose_runtime
from segpipe.inference import sliding, stage
from segpipe.inference.predictor import Predictor, PredictorOptions
from segpipe.inference.sliding import logit_planes
from segpipe.models.file import ModelFile
from segpipe.networks.build import build_network
from segpipe.planning.schema import Plan
from segpipe.preprocessing.schema import PreprocessedIndex
from segpipe.training.data import read_ahead
from segpipe.training.fold import make_trainer
from segpipe.training.job import FoldJob, Listener
from segpipe.training.run import train
from tests.bench.nnunet_loops import CONFIGURATION, NNUNetLoop, nnunet_tile_loop_s

VOLUME = (300, 512, 512)
LIMIT_S = 570
"""What is being measured then is left out; the line is printed within ten minutes."""
BEGUN = time.monotonic()


class OutOfTimeError(Exception):
    """Raised by the clock inside a part."""


def main():
    options = arguments()
    # As a training does, and the command `predict`.
    torch.backends.cudnn.benchmark = True
    line = {
        "bench": "gpu",
        "device": choose_runtime(options.device).describe(),
        "torch": torch.__version__,
        "left_out": {},
    }
    if options.rehearse:
        line["bench"] = "gpu, rehearsed in small: the figures mean nothing"
    with tempfile.TemporaryDirectory() as scratch:
        packed = Path(scratch) / "packed"
        shutil.copytree(options.packed, packed, ignore=shutil.ignore_patterns("wheels"))
        for part in (steps, waits, numbers, volume, hippocampus):
            begun = time.monotonic()
            try:
                with ends_at(LIMIT_S):
                    part(packed, options, line)
            except OutOfTimeError:
                line["left_out"][part.__name__] = f"{LIMIT_S} s were over; what was measured until then is in the line"
            print(f"{part.__name__}: {time.monotonic() - begun:.0f} s", file=sys.stderr, flush=True)
    line["seconds"] = round(time.monotonic() - BEGUN)
    print(json.dumps(rounded(line)))
    if options.packages:
        options.packages.write_text(json.dumps(imported_packages()), encoding="utf-8")


@contextmanager
def ends_at(limit_s):
    """Raise OutOfTimeError when so many seconds of the whole script are over."""

    def over(*_):
        raise OutOfTimeError

    left = limit_s - (time.monotonic() - BEGUN)
    if left <= 0:
        raise OutOfTimeError
    before = signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, left)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packed", type=Path, help="the folder that pack_gpu.py wrote")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--minutes", type=float, default=2.0, help="of the training on hippocampus")
    parser.add_argument("--rehearse", action="store_true", help="every part in small, for a processor")
    parser.add_argument("--packages", type=Path, help="write here which packages were imported")
    return parser.parse_args()


# What is trained


def job_of(packed, name, **settings):
    """A fold of a packed workspace."""
    workspace = Workspace(packed / name)
    index = PreprocessedIndex.read(workspace.prepared_index(CONFIGURATION))
    splits = Splits.read(workspace.splits)
    return FoldJob(workspace, Plan.read(workspace.plan), splits, index.cases, CONFIGURATION, **settings)


def trainer_of(job, runtime):
    """A trainer that is ready to step, on the eager forward pass."""
    trainer = make_trainer(job, runtime, Listener())
    trainer.compile_if_faster = False
    return trainer


def in_float32(runtime):
    return replace(runtime, autocast=None)


@contextmanager
def plain_float32():
    """Products in float32 as they are, without the tensor cores' shortcut, for comparisons with a processor."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def seconds_each(step, n, runtime, warm_up=3):
    """Median seconds of a step."""
    found = []
    for number in range(n + warm_up):
        runtime.wait()
        start = time.perf_counter()
        step()
        runtime.wait()
        if number >= warm_up:
            found.append(time.perf_counter() - start)
    return sorted(found)[len(found) // 2]


# Parts


def steps(packed, options, line):
    """Seconds of a training step of the 128³ plan: the trainer's whole step, its network alone, and nnU-Net's loop."""
    runtime = choose_runtime(options.device)
    name, n = ("hippocampus", 2) if options.rehearse else ("large", 20)
    trainer = trainer_of(job_of(packed, name, epochs=1), runtime)
    patch, batch = trainer.training.how.patch, trainer.training.how.batch_size
    found = line["training_step"] = {"patch": list(patch), "batch": batch}
    with read_ahead(
        trainer.training, count(), n_readers=trainer.n_readers, pin=runtime.device.type == "cuda"
    ) as batches:

        def whole():
            trainer._step(next(batches))
            trainer.progress.iteration += 1

        found["step_s"] = seconds_each(whole, n, runtime)
    x = torch.randn(batch, trainer.training.cases[0].image.shape[0], *patch, device=runtime.device)
    target = torch.randint(0, trainer.labels.n_outputs, (batch, *patch), device=runtime.device)

    def ours(forward):
        with runtime.precision():
            heads = forward(x.contiguous(memory_format=trainer.format))
        loss = trainer.loss.over_heads(heads, target, trainer.network.head_weights(len(heads)))
        trainer.state.optimizer.zero_grad(set_to_none=True)
        trainer.state.scaler.scale(loss).backward()
        trainer.state.scaler.unscale_(trainer.state.optimizer)
        nn.utils.clip_grad_norm_(trainer.network.parameters(), trainer.settings.gradient_clip)
        trainer.state.scaler.step(trainer.state.optimizer)
        trainer.state.scaler.update()

    theirs = NNUNetLoop(Plan.read(Workspace(packed / name).plan), runtime)
    found["network_step_s"] = seconds_each(lambda: ours(trainer.network.supervised), n, runtime)
    found["nnunet_step_s"] = seconds_each(lambda: theirs.step(x, target), n, runtime)
    found["ratio_eager"] = found["nnunet_step_s"] / found["network_step_s"]
    why = why_no_compiler(runtime, options)
    if why:
        line["left_out"]["compiled steps"] = why
    else:
        compiled = torch.compile(trainer.network.supervised, dynamic=False)
        found["network_step_compiled_s"] = seconds_each(lambda: ours(compiled), n, runtime)
        theirs.forward = torch.compile(theirs.forward, dynamic=False)
        found["nnunet_step_compiled_s"] = seconds_each(lambda: theirs.step(x, target), n, runtime)
        found["ratio_compiled"] = found["nnunet_step_compiled_s"] / found["network_step_compiled_s"]


def waits(packed, options, line):
    """The training step and the tile loop where torch makes every wait of the host an error; the waits of a whole case, counted."""
    runtime = choose_runtime(options.device)
    if runtime.device.type != "cuda":
        line["left_out"]["waits"] = "torch watches for waits on CUDA alone"
        return
    found = line["waits"] = {}
    trainer = trainer_of(job_of(packed, "hippocampus", epochs=1), runtime)
    with read_ahead(trainer.training, count(), n_readers=1, pin=True) as batches:
        waiting = [next(batches) for _ in range(5)]
        trainer._step(waiting[0])
        with watched("error"):
            for batch in waiting[1:]:
                trainer._step(batch)
    found["training_step"] = 0
    predictor = predictor_of(packed / "model.segpipe", runtime, precision="float32")
    image, spacing = scan_of(packed)
    predictor.predict(image, spacing)

    def planes_where_waits_are_errors(*args, **kwargs):
        planes = logit_planes(*args, **kwargs)
        while True:
            with watched("error"):
                item = next(planes, None)
            if item is None:
                return
            yield item

    def asked_once_a_row(ask):
        def asking(*args):
            with watched("default"):
                return ask(*args)

        return asking

    with (
        patch.object(stage, "logit_planes", planes_where_waits_are_errors),
        patch.object(sliding, "_require_finite", asked_once_a_row(sliding._require_finite)),
        patch.object(sliding, "_holding_some", asked_once_a_row(sliding._holding_some)),
    ):
        predictor.predict(image, spacing)
    found["tile_loop"] = 0
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        with watched("warn"):
            predictor.predict(image, spacing)
    found["case"] = sum("synchronizing" in str(w.message) for w in told)


def numbers(packed, options, line):
    """Differences to the CPU in float32: losses of the first steps, and masks of the packed model."""
    gpu, cpu = in_float32(choose_runtime(options.device)), Runtime(torch.device("cpu"), None)
    losses = []
    with plain_float32():
        for runtime in (gpu, cpu):
            trainer = trainer_of(job_of(packed, "hippocampus", epochs=1), runtime)
            losses.append([float(trainer._step(trainer.training.read(n))[0]) for n in range(3)])
        predictor = predictor_of(packed / "model.segpipe", gpu, precision="float32")
        differing, total = 0, 0
        for file in sorted((packed / "scans").glob("*.npz")):
            held = np.load(file)
            labels = predictor.predict(held["image"], tuple(held["spacing_mm"].tolist()))
            differing, total = differing + int((labels != held["mask_of_cpu"]).sum()), total + labels.size
    line["numbers"] = {
        "losses": losses[0],
        "largest_difference_of_losses": float(np.abs(np.subtract(*losses)).max()),
        "voxels_that_differ": differing,
        "of_voxels": total,
    }


def volume(packed, options, line):
    """Seconds of a volume of 300x512x512 voxels by a network of the 128³ plan, with and without mirroring; against nnU-Net's tile loop."""
    runtime = choose_runtime(options.device)
    name = "hippocampus" if options.rehearse else "large"
    plan = Plan.read(Workspace(packed / name).plan)
    configuration = plan.configuration(CONFIGURATION)
    shape = tuple(n + n // 4 for n in configuration.patch_size) if options.rehearse else VOLUME
    torch.manual_seed(0)
    weights = build_network(configuration.network, plan.n_inputs(configuration), plan.labels.n_outputs).state_dict()
    model = packed / "volume.segpipe"
    ModelFile(plan.to_json(), CONFIGURATION, "random", (0, 1, 2), {"0": weights}, None).write(model)
    rng = np.random.default_rng(0)
    image = rng.normal(100, 10, shape).astype(np.float32)
    found = line["volume"] = {"shape": list(shape)}
    for tta in (False, True):
        predictor = predictor_of(model, runtime, tta=tta)
        predictor.predict(image[: shape[0] // 2], configuration.spacing_mm)
        if runtime.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        runtime.wait()
        start = time.perf_counter()
        predicted = predictor.segment(volume_of(image, configuration.spacing_mm))
        key = "mirrored" if tta else "plain"
        found[f"{key}_s"] = time.perf_counter() - start
        found[f"{key}_stages_s"] = predicted.measured.seconds
        found[f"{key}_windows"] = predicted.measured.n_windows
        if runtime.device.type == "cuda":
            found[f"{key}_peak_gb"] = torch.cuda.max_memory_allocated() / 1e9
        theirs = nnunet_tile_loop_s(plan, image, runtime, tta=tta)
        found[f"{key}_nnunet_tiles_s"] = theirs
        found[f"{key}_ratio_of_networks"] = theirs / predicted.measured.seconds["network"]


def hippocampus(packed, options, line):
    """Train hippocampus by the plan of the default recipe, and score the held-out scans that were packed."""
    runtime = choose_runtime(options.device)
    left = (LIMIT_S - (time.monotonic() - BEGUN)) / 60
    length = {"epochs": 1} if options.rehearse else {"minutes": max(min(options.minutes, left), 0.1)}
    job = job_of(packed, "hippocampus", **length)
    if options.rehearse:
        short = job.plan.training.model_copy(update={"iterations_per_epoch": 2, "validation_batches": 1})
        job = replace(job, plan=job.plan.model_copy(update={"training": short}))
    notes = []
    record = train(job, runtime, Listener(note=notes.append))
    plan, model = job.plan, packed / "trained.segpipe"
    from safetensors.torch import load_file

    ModelFile(
        plan.to_json(), CONFIGURATION, "bench", record.mirror_axes, {"0": load_file(job.folder.weights)}, None
    ).write(model)
    predictor = predictor_of(model, runtime)
    scores = {name: [] for name in plan.labels.names}
    for file in sorted((packed / "scans").glob("*.npz")):
        held = np.load(file)
        found = predictor.predict(held["image"], tuple(held["spacing_mm"].tolist()))
        for target in plan.labels.targets:
            a, b = np.isin(found, target.values), np.isin(held["labels"], target.values)
            scores[target.name].append(2 * (a & b).sum() / max(a.sum() + b.sum(), 1))
    line["hippocampus"] = {
        "iterations": record.iterations,
        "minutes": record.elapsed_s / 60,
        "step_s": record.elapsed_s / max(record.iterations, 1),
        "data_wait_share": record.data_wait_share,
        "held_out": len(next(iter(scores.values()))),
        "dice": {name: float(np.mean(values)) for name, values in scores.items()},
        "notes": notes,
    }


# Prediction


def predictor_of(model, runtime, **options):
    return Predictor.load(model, runtime, PredictorOptions(**{"tta": False, "engine": "torch"} | options))


def volume_of(image, spacing_mm):
    from segpipe.core.geometry import Grid, triple
    from segpipe.core.volume import Volume

    return Volume(image[None], Grid.of_spacing(triple(image.shape), triple(spacing_mm)))


def scan_of(packed):
    held = np.load(next(iter(sorted((packed / "scans").glob("*.npz")))))
    return held["image"], tuple(held["spacing_mm"].tolist())


@contextmanager
def watched(mode):
    """Let torch tell of what makes the host wait: an error, or a warning."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode(mode)
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


# The machine


def why_no_compiler(runtime, options):
    """Reason why torch.compile is not tried here; empty where it is."""
    if options.rehearse:
        return "a rehearsal"
    if not any(shutil.which(name) for name in ("cc", "gcc", "clang")):
        return "no C compiler (cc, gcc, clang) is on the path"
    if runtime.device.type == "cuda":
        try:
            import triton  # noqa: F401
        except ImportError as error:
            return f"triton cannot be imported ({error})"
    return ""


def imported_packages():
    """Packages that were imported, with their versions: what a machine with torch alone has to be given."""
    from importlib.metadata import packages_distributions, version

    owners = packages_distributions()
    modules = {name.partition(".")[0] for name in list(sys.modules)}
    return {owner: version(owner) for name in modules for owner in owners.get(name, ())}


def rounded(value):
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {key: rounded(v) for key, v in value.items()}
    return [rounded(v) for v in value] if isinstance(value, list) else value


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    main()
