"""What the tests let the device do: trainers that are ready to step, cases to predict, and what the host waits for meanwhile."""

import json
import shutil
import warnings
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from pydantic import TypeAdapter

import segpipe
from segpipe.core.geometry import Grid, triple
from segpipe.core.volume import Volume
from segpipe.core.workspace import PreparedFiles, Workspace
from segpipe.distillation.guidance import Distillation
from segpipe.distillation.spec import parse_term
from segpipe.distillation.teacher import Teacher
from segpipe.execution.device import choose_runtime
from segpipe.inference import sliding
from segpipe.inference.predictor import Predictor, PredictorOptions
from segpipe.io.arrays import write_array
from segpipe.io.formats import write_volume
from segpipe.losses.spec import LossTerm
from segpipe.models.file import ModelFile
from segpipe.networks.build import build_network
from segpipe.planning.schema import Plan
from segpipe.preprocessing.previous import PreviousRecord
from segpipe.training import fold
from segpipe.training.data import read_ahead
from segpipe.training.fold import make_trainer
from segpipe.training.job import Listener
from segpipe.training.settings import FoldSettings
from segpipe.training.storage import open_cases
from segpipe.workflows.arrays import prepare_arrays
from segpipe.workflows.fold import FoldWork, job_of
from segpipe.workflows.project import Project
from tests.phantoms import axis_grid

RECIPE = """
name = "tiny"
description = "for tests"
[planner]
base_features = 4
max_features_3d = 8
max_batch = 2
budget_gb = 1.0
[training]
momentum = 0.9
learning_rate = 0.02
iterations_per_epoch = 4
validation_batches = 1
"""
KINDS = {
    "plain": {"labels": {"background": 0, "shell": 2, "core": 5}},
    "ignore": {"labels": {"background": 0, "shell": 2, "core": 5, "ignore": 9}},
    "regions": {"labels": {"background": 0, "whole": [2, 5], "core": 5}, "regions_class_order": [2, 5]},
}
KINDS["deep"] = KINDS["plain"]
"""Larger, so that the plan's network has heads at lower resolution."""
SHAPES = {"deep": (36, 40, 40)}
SHAPE = (18, 24, 24)


class RealGPU:
    """A GPU that is there, as the tests see it."""

    kind, simulated = "cuda", False

    @contextmanager
    def watched(self):
        """What the host waits for inside, by place; as torch's own watch tells it."""
        waits, before = Counter(), torch.cuda.get_sync_debug_mode()
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                yield waits
            finally:
                torch.cuda.set_sync_debug_mode(before)
        for warning in told:
            if "synchronizing" in str(warning.message):
                waits[f"{Path(warning.filename).name}:{warning.lineno}"] += 1


@contextmanager
def watched(device):
    """What the host waits for inside: a Counter of places, complete when the context ends."""
    if isinstance(device, RealGPU):
        with device.watched() as waits:
            yield waits
        return
    waits = Counter()
    first = len(device.events)
    yield waits
    waits.update(e.where for e in device.events[first:] if e.kind == "wait")


@dataclass(frozen=True)
class Place:
    """A planned dataset with prepared arrays, and a model of two folds with random weights."""

    folder: Path
    workspace: Workspace
    plan: Plan
    index: object

    @property
    def dataset(self):
        return self.folder / "dataset"

    @property
    def model(self):
        return self.folder / "model.segpipe"

    @property
    def segmentations(self):
        """Prepared label indices (Z, Y, X) of each case."""
        folder = self.workspace.preprocessed("3d_fullres")
        return [case.segmentation[...] for case in open_cases(folder, self.index.cases, None)]


def make_place(folder, kind):
    """Five drawn cases of a ball in a shell, planned and prepared."""
    _write_dataset(folder / "dataset", kind)
    (folder / "tiny.toml").write_text(RECIPE, encoding="utf-8")
    segpipe.plan(folder / "dataset", work=folder / "work", recipe=folder / "tiny.toml", jobs=1)
    workspace = Workspace(folder / "work")
    plan = Plan.read(workspace.plan)
    index = prepare_arrays(Project(folder / "dataset", workspace, workers=1), plan, "3d_fullres")
    place = Place(folder, workspace, plan, index)
    model_of(plan).write(place.model)
    return place


def model_of(plan, configuration="3d_fullres", previous=None):
    """A model of two folds with random weights."""
    chosen, weights = plan.configuration(configuration), {}
    for number in (0, 1):
        torch.manual_seed(number)
        weights[str(number)] = build_network(chosen.network, plan.n_inputs(chosen), plan.labels.n_outputs).state_dict()
    return ModelFile(plan.to_json(), configuration, "tiny", (0, 1, 2), weights, previous)


def _write_dataset(folder, kind):
    shape = SHAPES.get(kind, SHAPE)
    z, y, x = np.meshgrid(*(np.arange(n) for n in shape), indexing="ij")
    for number in range(5):
        rng = np.random.default_rng(number)
        centre = np.array(shape) / 2 + rng.uniform(-2, 2, 3)
        distance = np.sqrt(((np.stack((z, y, x), -1) - centre) ** 2).sum(-1))
        labels = np.where(distance < 3.5, 5, np.where(distance < 7, 2, 0)).astype(np.uint8)
        image = rng.normal(100, 10, shape) + 60 * (labels == 2) + 120 * (labels == 5)
        if kind == "ignore":
            labels[np.arange(shape[0]) % 3 != 0] = 9
        for what, array in (("images", image.astype(np.float32)), ("labels", labels)):
            write_volume(folder / what / f"case_{number}.nii.gz", array, axis_grid(shape, spacing=(1.0, 1.0, 1.0)))
    (folder / "dataset.json").write_text(json.dumps(KINDS[kind]), encoding="utf-8")


# Training


def loss(name, **options):
    """A recipe's loss of one term."""
    return (TypeAdapter(LossTerm).validate_python({"name": name, **options}),)


def cascade_plan(plan):
    """The plan with a low-resolution stage and a cascade, for which its images are too small."""
    full = plan.configuration("3d_fullres")
    low = full.model_copy(update={"name": "3d_lowres", "spacing_mm": tuple(1.5 * s for s in full.spacing_mm)})
    second = full.model_copy(update={"name": "3d_cascade_fullres", "previous_stage": "3d_lowres"})
    added = {"3d_lowres": low, "3d_cascade_fullres": second}
    return plan.model_copy(update={"configurations": plan.configurations | added})


def with_cascade(place, folder):
    """The same place with a cascade, whose first stage found the reference."""
    workspace = Workspace(shutil.copytree(place.workspace.root, folder / "work"))
    for case, segmentation in zip(place.index.cases, place.segmentations, strict=True):
        files = PreparedFiles(workspace.first_stage("3d_cascade_fullres", place.plan.recipe) / case)
        files.root.mkdir(parents=True)
        sha256 = write_array(files.previous, np.maximum(segmentation, 0).astype(np.uint8))
        PreviousRecord(source_digest="", arrays={files.previous.name: sha256}).write(files.record)
    return replace(place, workspace=workspace, plan=cascade_plan(place.plan))


def trainer_of(
    place, device, *, kd=(), lies="device", precision=None, deterministic=False, configuration="3d_fullres", **training
):
    """A trainer that is ready to step.

    Parameters
    ----------
    place : Place
    device : str
        As ``--device`` takes it.
    kd : sequence of str
        Terms of distillation.
    lies : str
        Where the prepared arrays are: device, memory or disk.
    precision : torch.dtype, optional
        Instead of the device's.
    deterministic : bool
    configuration : str
    training
        Settings of the recipe.
    """
    plan = place.plan.model_copy(update={"training": place.plan.training.model_copy(update=training)})
    job = job_of(
        FoldWork(
            Project(place.folder / "dataset", place.workspace), plan, configuration,
            FoldSettings(epochs=1, deterministic=deterministic), place.index,
        )
    )  # fmt: skip
    if kd:
        teacher = Teacher.load(place.model, fold=0, folds=("0",))
        terms = tuple(parse_term(text) for text in kd)
        job = replace(
            job, guidance=Distillation(terms, 10.0, (teacher,), plan, plan.configuration("3d_fullres"), seed=0)
        )
    runtime = choose_runtime(device)
    # As a training does; a fixture puts it back.
    torch.use_deterministic_algorithms(deterministic)
    if precision is not None:
        runtime = replace(runtime, autocast=None if precision == torch.float32 else precision)

    def chosen(_, there, **__):
        # Where nothing is won by data on the device (a processor, artefacts of MR), training asks for another place.
        return "memory" if lies == "device" and there.type == "cpu" else lies

    with patch.object(fold, "choose_place", chosen):
        trainer = make_trainer(job, runtime, Listener())
    trainer._choose_forward(0)
    return trainer


def steps_of(trainer, n=2, labelled=None):
    """Let a trainer take steps as its loop does; returns the loss of each, still on the device."""
    found = []
    with read_ahead(trainer.training, count(), n_readers=1, pin=trainer.runtime.device.type != "cpu") as batches:
        for _ in range(n):
            batch = next(batches)
            found.append(trainer._step(batch if labelled is None else replace(batch, labelled=labelled))[0])
            trainer.progress.iteration += 1
    return found


# Prediction


def image_of(shape, spacing=(1.0, 1.0, 1.0)):
    """A drawn volume with a bright box in noise, on a dark ground."""
    rng = np.random.default_rng(0)
    array = rng.normal(100, 10, shape).astype(np.float32)
    array[tuple(slice(n // 4, n // 2) for n in shape)] += 90
    return Volume(array[None], Grid.of_spacing(triple(shape), spacing))


def predictor_of(place, device, *, edit=lambda plan: plan, tiles=None, model=None, precision="float32", **options):
    """A loaded model.

    Parameters
    ----------
    place : Place
    device : str
    edit : callable
        Changes the plan.
    tiles : int, optional
        Windows of a batch.
    model : ModelFile, optional
        Instead of the place's.
    precision : str
    options
        Fields of :class:`segpipe.inference.predictor.Options`.
    """
    model = model or ModelFile.read(place.model)
    changed = place.folder / "changed.segpipe"
    plan = edit(Plan.model_validate_json(model.plan_json))
    replace(model, plan_json=plan.to_json()).write(changed)
    predictor = Predictor.load(
        changed, choose_runtime(device), PredictorOptions(engine="torch", precision=precision, **options)
    )
    for stage in predictor.stages:
        for engine in stage.ensemble.engines:
            engine.batch = tiles or engine.batch
        stage.ensemble.batch = tiles or stage.ensemble.batch
    return predictor


def skipping(plan):
    """A plan whose windows outside the body are not computed."""
    chosen = plan.configuration("3d_fullres").model_copy(update={"use_mask_for_norm": (True,)})
    inference = plan.inference.model_copy(update={"skip_empty_windows": True})
    return plan.model_copy(
        update={"inference": inference, "configurations": plan.configurations | {"3d_fullres": chosen}}
    )


@contextmanager
def small_planes():
    """Let a row of windows be handed on plane by plane."""
    with patch.object(sliding, "PLANES_BYTES", 1):
        yield
