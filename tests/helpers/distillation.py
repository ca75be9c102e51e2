"""A small place to distil in: a planned dataset, a teacher with random weights, and the parts of one step."""

from dataclasses import replace

import pytest
import torch

import segpipe
from segpipe.core.workspace import PreparedFiles, SoftLabelFiles
from segpipe.dataset.schema import Dataset
from segpipe.distillation.guidance import Distillation
from segpipe.distillation.soft_labels import Source
from segpipe.distillation.spec import parse_term
from segpipe.distillation.teacher import Teacher
from segpipe.execution.device import Runtime
from segpipe.io.arrays import read_array
from segpipe.networks.spec import parse_choice
from segpipe.planning.schema import Plan
from segpipe.planning.variant import with_network
from segpipe.training.fold import make_trainer
from segpipe.training.guide import StepContext
from segpipe.training.job import Listener
from segpipe.training.settings import FoldSettings
from segpipe.training.storage import SoftArrays
from segpipe.workflows.arrays import prepare_arrays
from segpipe.workflows.fold import FoldWork
from segpipe.workflows.fold import job_of as fold_job
from segpipe.workflows.project import Project
from tests.helpers.nnunet_models import model_of

FLOAT32 = Runtime(torch.device("cpu"), None)
TERMS = [
    "voxel:balance=class",
    "channel",
    "channel:at=encoder.stages.1",
    "dist",
    "pair:range=8",
    "holistic:width=8",
    "hint:at=encoder.stages.1",
    "attention:at=encoder.stages.1",
    "fsp:at=encoder.stages.0,to=encoder.stages.1",
    "relational:at=encoder.stages.1",
    "similarity:at=encoder.stages.1",
    "region:at=decoder.stages.0",
    "masked:at=encoder.stages.1",
    "mutual",
]


@pytest.fixture
def place(workplace, tmp_path):
    """A planned small dataset, and a model of its plan with random weights."""
    folder, workspace = workplace(batch=2)
    plan = Plan.read(workspace.plan)
    teacher = tmp_path / "teacher.segpipe"
    model_of(plan, folds=("0", "1")).write(teacher)
    return folder, workspace, plan, teacher


def distil(place, *kd, student="width=0.5,multiple=2", epochs=1, **options):
    folder, workspace, _, teacher = place
    given = {"teacher": teacher, "kd": kd, "compare": False, "tta": False, "jobs": 1, "device": "cpu"}
    return segpipe.distill(folder, student=student, epochs=epochs, work=workspace.root, **(given | options))


def prepared_job(place, guidance=None, student="planned:width=0.5,multiple=2", **settings):
    _, workspace, plan, _ = place
    chosen = with_network(plan, None, parse_choice(student), None)
    index = prepare_arrays(Project(workspace.root, workspace, workers=1), plan, "3d_fullres")
    job = fold_job(
        FoldWork(Project(workspace.root, workspace), chosen, "3d_fullres", FoldSettings(epochs=1, **settings), index)
    )
    return replace(job, guidance=guidance and guidance(chosen, chosen.configuration("3d_fullres")))


def guided_trainer(place, *kd, folds=("0",), note=lambda _: None, cap=10.0):
    """A trainer that is ready to step, with its guide."""
    teacher = Teacher.load(place[3], fold=0, folds=folds)
    terms = tuple(parse_term(text) for text in kd)
    job = prepared_job(place, lambda plan, c: Distillation(terms, cap, (teacher,), plan, c, seed=0))
    return make_trainer(job, FLOAT32, Listener(note=note))


def lesson_of(trainer, soft=None, progress=0.5):
    batch = trainer.training.read(0)
    seen = trainer.training.to_device(batch, torch.device("cpu"))
    heads = trainer.forward(seen.images)
    task = trainer.task_loss(heads, seen.labels, batch.labelled)
    return StepContext(
        images=seen.images,
        labels=seen.labels,
        inside=seen.inside,
        soft=soft,
        heads=heads,
        task=task.detach(),
        share=1.0,
        iteration=0,
        progress=progress,
        labelled=batch.labelled,
    )


# Soft labels


def sources_of(place, plan):
    _, workspace, base, _ = place
    prepare_arrays(Project(workspace.root, workspace, workers=1), base, "3d_fullres")
    return [
        Source(c.id, tuple(i.path for i in c.images), PreparedFiles(workspace.preprocessed("3d_fullres") / c.id))
        for c in Dataset.read(workspace.dataset).cases
    ]


def dense(folder, case, n_outputs):
    files = SoftLabelFiles(folder / case)
    shape = read_array(files.shares).shape[1:]
    arrays = SoftArrays(read_array(files.outputs), read_array(files.shares), n_outputs)
    return arrays.read((0, 0, 0), shape)
