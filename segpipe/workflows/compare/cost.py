"""What a model costs: counted, and measured in a process of its own."""

import time
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from segpipe.errors import ModelError
from segpipe.evaluation.comparison import Latency
from segpipe.execution.device import choose_runtime
from segpipe.execution.memory import PeakMemory
from segpipe.execution.torch_state import cpu_threads, fastest_convolutions
from segpipe.inference.engines.base import prediction_network
from segpipe.inference.engines.choose import inference_runtime, network_cache
from segpipe.inference.inputs import InputCase
from segpipe.inference.predictor import Predictor, PredictorOptions
from segpipe.inference.run import predict
from segpipe.inference.sliding import mirror_combinations
from segpipe.models.read import read_any_model
from segpipe.networks.measure import macs, n_parameters
from segpipe.workflows.scoring import Models


@dataclass(frozen=True)
class Counted:
    """Counts of one model."""

    digest: str
    parameters: int
    macs_per_window: int
    """Multiply-adds of all folds and mirror images."""
    file_mb: float


def count(models: Models) -> Counted:
    """Count a model's weights and work.

    Raises
    ------
    ModelError
        If it is no model, or a cascade.
    """
    (path,), folds = models.paths, models.folds
    model = read_any_model(path, folds).single(path, "a comparison")
    if model.previous is not None:
        raise ModelError(f"{path}: is a cascade, whose stages have costs of their own; compare its stages")
    plan = model.plan
    configuration = plan.configuration(model.configuration)
    network, n_inputs = prediction_network(plan, configuration, model.folds[folds[0]])
    passes = len(folds) * (len(mirror_combinations(model.mirror_axes)) if models.tta else 1)
    return Counted(
        digest=model.digest(folds),
        parameters=n_parameters(network),
        macs_per_window=passes * macs(network, n_inputs, configuration.patch_size),
        file_mb=sum(value.nbytes for fold in folds for value in model.folds[fold].values()) / 1e6,
    )


@dataclass(frozen=True)
class Run:
    """Prediction of some cases by one model on one device."""

    latency: Latency
    windows_per_case: float
    failed: dict[str, str]


def run(models: Models, cases: list[InputCase], folder: Path, *, device: str, threads: int) -> Run:
    """Predict the cases in this process, which is best a fresh one: its peak memory is what is reported."""
    # As `segpipe predict` does in its own process.
    with cpu_threads(threads), fastest_convolutions():
        return _run(models, cases, folder, device)


def _run(models: Models, cases: list[InputCase], folder: Path, device: str) -> Run:
    runtime = inference_runtime(choose_runtime(device))
    options = PredictorOptions(models.folds, models.tta, postprocess=False, cache=network_cache())
    with PeakMemory() as memory:
        predictor = Predictor.load(models.paths, runtime, options)
        # What is done once a process (memory taken, kernels chosen) is not charged to the cases.
        with TemporaryDirectory(dir=folder) as apart:
            warming = [replace(c, output=Path(apart) / c.output.name) for c in cases[:1]]
            predict(warming, predictor, Path(apart) / "log.jsonl")
        start = time.perf_counter()
        rows = predict(cases, predictor, folder / "predictions.jsonl")
        elapsed = time.perf_counter() - start
    latency = Latency(
        device=runtime.describe(),
        engine=predictor.describe,
        seconds_per_case=elapsed / len(cases),
        peak_memory_gb=memory.gb,
        peak_device_gb=torch.cuda.max_memory_allocated(runtime.device) / 1e9 if runtime.device.type == "cuda" else None,
    )
    failed = {row.case: row.reason or "" for row in rows if row.status == "failed"}
    done = [row for row in rows if row.status == "done"]
    return Run(latency, sum(row.n_windows for row in done) / max(len(done), 1), failed)
