"""What the calling program set is as it was, whatever segpipe did: torch, random numbers, warnings, loggers, signals."""

import logging
import os
import random
import signal
import subprocess
import sys
import threading
import warnings
from contextlib import contextmanager
from pathlib import Path

# When it is loaded it adds filters and sets the level of its own logger.
import lightning_fabric  # noqa: F401
import numpy as np
import pytest
import torch

import segpipe
from segpipe.core.workspace import Workspace
from segpipe.errors import SegpipeError, TrainingError
from segpipe.execution import processes
from segpipe.execution.device import choose_runtime
from segpipe.execution.quiet import ignored_warnings
from segpipe.inference.engines.base import prediction_network
from segpipe.inference.predictor import Predictor, PredictorOptions
from segpipe.models.file import ModelFile
from segpipe.networks.build import build_network
from segpipe.planning.schema import Plan
from segpipe.training.loop import Trainer
from tests.phantoms import write_small_dataset

RECIPE = """
name = "tiny"
description = "for tests"
[planner]
base_features = 4
max_features_3d = 8
max_batch = 2
budget_gb = 1.0
[training]
iterations_per_epoch = 2
validation_batches = 1
"""


def state_of_the_process():
    """All that a calling program may have set, by name."""
    loggers = logging.root.manager.loggerDict
    levels = {name: one.level for name, one in sorted(loggers.items()) if isinstance(one, logging.Logger)}
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002 - that of a program of older habits
    return {
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "deterministic, warnings only": torch.is_deterministic_algorithms_warn_only_enabled(),
        "cudnn.benchmark": torch.backends.cudnn.benchmark,
        "cudnn.deterministic": torch.backends.cudnn.deterministic,
        "threads": torch.get_num_threads(),
        "dtype": torch.get_default_dtype(),
        "precision of products": torch.get_float32_matmul_precision(),
        "gradients": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "torch's random numbers": torch.get_rng_state().tolist(),
        "numpy's random numbers": (kind, keys.tolist(), *rest),
        "python's random numbers": random.getstate(),
        "warning filters": list(warnings.filters),
        "level of the root logger": logging.root.level,
        "levels of loggers": levels,
        "filters of loggers": [name for name in levels if logging.getLogger(name).filters],
        "environment": {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"},
        "signal handlers": {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)},
    }


@contextmanager
def nothing_changes():
    """Fail where anything is another one afterwards."""
    before = state_of_the_process()
    try:
        yield
    finally:
        after = state_of_the_process()
        new = set(after["levels of loggers"]) - set(before["levels of loggers"])
        for name in new:
            # A logger that a package made when it was loaded.
            del after["levels of loggers"][name]
        assert [name for name in before if before[name] != after[name]] == []


def ignore_signal(*_):
    """A handler of the calling program's own."""


@contextmanager
def unusual():
    """What a calling program might have set, each other than torch's and Python's own choice, and other than segpipe's."""
    threads, handlers = torch.get_num_threads(), [(n, signal.getsignal(n)) for n in (signal.SIGINT, signal.SIGTERM)]
    quiet = logging.getLogger("lightning_fabric")
    level = quiet.level
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="of the calling program")
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.backends.cudnn.benchmark = True
        torch.set_num_threads(3)
        torch.manual_seed(77)
        quiet.setLevel(logging.DEBUG)
        for number, _ in handlers:
            signal.signal(number, ignore_signal)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(False)
            torch.backends.cudnn.benchmark = False
            torch.set_num_threads(threads)
            quiet.setLevel(level)
            for number, handler in handlers:
                signal.signal(number, handler)


@contextmanager
def usual():
    """torch's own choice. Said anew, or what an earlier training left would pass for it; random numbers are those of no training."""
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.benchmark = False
    torch.manual_seed(5)
    yield


SETTINGS = pytest.mark.parametrize("setting", [usual, unusual])


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a small dataset, a recipe, and a fold of it that `run` trained; the model's teacher is at hand."""
    folder = tmp_path_factory.mktemp("side_effects")
    write_small_dataset(folder / "dataset", n_cases=5)
    (folder / "tiny.toml").write_text(RECIPE, encoding="utf-8")
    segpipe.plan(folder / "dataset", work=folder / "work", recipe=folder / "tiny.toml", jobs=1)
    segpipe.train(folder / "dataset", work=folder / "work", **SHORT)
    return folder


SHORT = {"epochs": 1, "device": "cpu", "tta": False, "jobs": 1}


def model(place):
    return Workspace(place / "work").model("3d_fullres", "tiny")


def run(place, output, **more):
    segpipe.run(place / "dataset", work=output, recipe=place / "tiny.toml", **SHORT, **more)


def run_in_processes(place, output):
    segpipe.run(place / "dataset", work=output, recipe=place / "tiny.toml", **SHORT | {"jobs": 2}, deterministic=True)


def train(place, output, **more):
    segpipe.plan(place / "dataset", work=output, recipe=place / "tiny.toml", jobs=1)
    segpipe.train(place / "dataset", work=output, **SHORT, **more)


def train_on_two(place, output):
    train(place, output, devices=2)


def distill(place, output):
    how = {"teacher": model(place), "student": "width=0.5,multiple=2", "kd": ("voxel", "mutual"), "compare": False}
    segpipe.plan(place / "dataset", work=output, recipe=place / "tiny.toml", jobs=1)
    segpipe.distill(place / "dataset", work=output, **how, **SHORT)


def compare(place, output):
    how = {"dataset": place / "dataset", "work": place / "work", "output": output, "device": "cpu", "tta": False}
    segpipe.compare([model(place)], threads=2, jobs=1, **how)


def predict(place, output, engine="auto"):
    segpipe.predict(place / "dataset/images", output, model=model(place), tta=False, device="cpu", engine=engine)


def predict_by_torch(place, output):
    predict(place, output, engine="torch")


@SETTINGS
@pytest.mark.parametrize(
    "command", [run, run_in_processes, train, train_on_two, distill, compare, predict, predict_by_torch]
)
def test_a_command_leaves_the_process_as_it_was(place, tmp_path, command, setting):
    with setting(), nothing_changes():
        command(place, tmp_path / "output")


@SETTINGS
def test_a_comparison_in_this_very_process_leaves_it_as_it_was(place, tmp_path, monkeypatch, setting):
    monkeypatch.setattr(processes, "_may_start_processes", lambda: False)
    with setting(), nothing_changes():
        compare(place, tmp_path / "output")


@SETTINGS
@pytest.mark.parametrize("command", [run, train, distill])
def test_a_training_that_fails_leaves_the_process_as_it_was(place, tmp_path, monkeypatch, command, setting):
    def fail(self):
        assert torch.are_deterministic_algorithms_enabled() is False
        raise TrainingError("a power cut")

    monkeypatch.setattr(Trainer, "_after_iteration", fail)
    with setting(), nothing_changes(), pytest.raises(TrainingError, match="a power cut"):
        command(place, tmp_path / "output")


@SETTINGS
@pytest.mark.parametrize("command", [compare, predict])
def test_a_prediction_that_fails_leaves_the_process_as_it_was(place, tmp_path, monkeypatch, command, setting):
    monkeypatch.setattr(processes, "_may_start_processes", lambda: False)

    def fail(*_, **__):
        raise SegpipeError("no memory for the engine")

    monkeypatch.setattr("segpipe.inference.predictor.make_stage", fail)
    with setting(), nothing_changes(), pytest.raises(SegpipeError, match="no memory for the engine"):
        command(place, tmp_path / "output")


@pytest.mark.parametrize("deterministic", [False, True])
def test_choosing_a_device_changes_nothing(deterministic):
    with unusual(), nothing_changes():
        assert choose_runtime("cpu", deterministic=deterministic).deterministic is deterministic


def test_a_deterministic_training_is_one_whatever_the_program_set(place, tmp_path, monkeypatch):
    seen, real = [], Trainer._step

    def look(self, batch):
        seen.append((torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark))
        return real(self, batch)

    monkeypatch.setattr(Trainer, "_step", look)
    train(place, tmp_path / "deterministic", deterministic=True)
    assert seen == [(True, False)] * 2
    with unusual():
        train(place, tmp_path / "other")
    assert seen[2:] == [(False, True)] * 2


# Two Predictors


@pytest.mark.parametrize("engine", ["torch", "openvino"])
def test_two_predictors_in_two_threads_leave_no_trace_of_each_other(place, engine):
    if engine == "openvino":
        pytest.importorskip("openvino")
    image = np.random.default_rng(0).normal(size=(16, 20, 24)).astype(np.float32)
    options = PredictorOptions(engine=engine, tta=False)
    runtime = choose_runtime("cpu")
    expected = Predictor.load(model(place), runtime, options).predict(image, (1.0, 1.0, 1.0))
    found, failures = [], []
    begin = threading.Barrier(2)

    def work():
        begin.wait()
        try:
            for _ in range(5):
                # One thread loads while the other one computes.
                found.append(Predictor.load(model(place), runtime, options).predict(image, (1.0, 1.0, 1.0)))
        except Exception as error:  # noqa: BLE001 - shown below
            failures.append(error)

    with unusual(), nothing_changes():
        threads = [threading.Thread(target=work) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not failures
    assert len(found) == 10
    assert all(np.array_equal(labels, expected) for labels in found)


def test_a_network_of_another_package_is_loaded_without_torchs_random_numbers(place):
    """Its constructor draws first weights, which nobody needs."""
    plan = Plan.model_validate_json(ModelFile.read(model(place)).plan_json)
    chosen = plan.configuration("3d_fullres")
    other = chosen.network.model_copy(update={"encoder_blocks": ()})
    assert not other.encoder_blocks

    class DrawnError(Exception):
        pass

    drawn = []

    def built(spec, n_channels, n_classes):
        network = build_network(chosen.network, n_channels, n_classes)
        torch.randn(2), torch.rand(3, 2), torch.empty(3).uniform_(), torch.randperm(5), torch.nn.Linear(2, 2)
        drawn.append(torch.randint(5, (2,)))
        return network

    weights = ModelFile.read(model(place)).folds["0"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("segpipe.inference.engines.base.build_network", built)
        with nothing_changes():
            network, _ = prediction_network(plan, chosen.model_copy(update={"network": other}), weights)
    assert drawn
    assert all(torch.equal(value, weights[name]) for name, value in network.state_dict().items())


# Warnings


def test_ignored_warnings_end_in_any_order_and_leave_filters_of_others_alone():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        before = list(warnings.filters)
        first, second = (ignored_warnings(UserWarning, "ours") for _ in range(2))
        first.__enter__()
        second.__enter__()
        warnings.warn("ours", stacklevel=1)
        warnings.warn("theirs", stacklevel=1)
        first.__exit__(None, None, None)
        warnings.warn("ours still", stacklevel=1)
        second.__exit__(None, None, None)
        assert list(warnings.filters) == before
        warnings.warn("ours again", stacklevel=1)
    assert [str(one.message) for one in caught] == ["theirs", "ours again"]


@pytest.mark.parametrize("ours_ends_first", [True, False])
def test_ignored_warnings_cross_with_a_catch_warnings_of_another_thread(ours_ends_first):
    before = list(warnings.filters)
    ours, theirs = ignored_warnings(UserWarning, "ours"), warnings.catch_warnings()
    ours.__enter__()
    theirs.__enter__()
    for one in (ours, theirs) if ours_ends_first else (theirs, ours):
        one.__exit__(None, None, None)
        assert one is theirs or not any(rule[1] and rule[1].pattern == "ours" for rule in warnings.filters)
    assert list(warnings.filters) == before


def test_the_warning_of_a_replaced_worker_is_ignored_while_workers_are_used():
    def warned(word):
        warnings.warn("A worker stopped while some jobs were given to the executor.", UserWarning, stacklevel=1)
        return word

    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        for _ in processes.map_cases(str, [1, 2], workers=2, bytes_each=1):
            warned("")
        with processes.open_executor(None, 1):
            warned("")
        with pytest.raises(UserWarning, match="A worker stopped"):
            warned("")


# Imports

IMPORTS = '''
import importlib, pkgutil, sys
# OpenVINO alone would report to its makers, which no test may do.
sys.modules["openvino_telemetry"] = None
# What other packages do when they are loaded is not looked at.
import torch, torch.jit, torch.distributed, torch.utils.flop_counter, scipy.stats, matplotlib.pyplot
import nibabel, SimpleITK, skimage, filelock, loky, lightning_fabric, torch._dynamo, safetensors.torch
others = """monai.networks.nets distributed openvino openvino.frontend.pytorch.ts_decoder torchio PIL.Image pydicom tensorboard"""
for name in others.split():
    try:
        importlib.import_module(name)
    except ImportError:
        pass
from tests.integration.test_side_effects import state_of_the_process
for name in [name for name in sys.modules if name.split(".")[0] == "segpipe"]:
    del sys.modules[name]
before = state_of_the_process()
import segpipe
modules = [m.name for m in pkgutil.walk_packages(segpipe.__path__, "segpipe.") if not m.name.endswith("__main__")]
for name in modules:
    importlib.import_module(name)
after = state_of_the_process()
assert len(modules) > 150, len(modules)
for kind in ("levels of loggers",):
    after[kind] = {name: level for name, level in after[kind].items() if name in before[kind] or level}
changed = [name for name in before if before[name] != after[name]]
assert not changed, [(name, before[name], after[name]) for name in changed]
'''


def test_nothing_happens_when_modules_are_imported():
    done = subprocess.run(
        [sys.executable, "-c", IMPORTS],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stderr[-3000:]
