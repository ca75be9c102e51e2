"""A recipe that trains for a moment, and workspaces that are planned with it."""

import pytest
import torch

import segpipe
from segpipe.core.progress import Watch
from segpipe.core.workspace import Workspace
from segpipe.execution.device import Runtime
from segpipe.planning.schema import Plan
from segpipe.training.job import FoldJob
from segpipe.training.settings import FoldSettings
from segpipe.workflows.arrays import prepare_arrays
from segpipe.workflows.fold import FoldWork
from segpipe.workflows.fold import job_of as fold_job
from segpipe.workflows.project import Project

FLOAT32 = Runtime(torch.device("cpu"), None)
RECIPE = """
name = "tiny"
description = "for tests"
[planner]
base_features = 4
max_batch = 4
min_batch = 4
budget_gb = 1.0
[training]
learning_rate = 0.01
momentum = 0.9
iterations_per_epoch = 4
validation_batches = 2
"""


class Notes(Watch):
    def __init__(self):
        self.notes = []

    def note(self, text):
        self.notes.append(text)


@pytest.fixture
def workplace(tmp_path, planned_once):
    """A function that gives a small dataset, for reading only, and a workspace where it is planned and prepared.

    Where the test wrote a dataset of its own to ``tmp_path / "dataset"``, that one is planned.
    """

    def plan(name="work", extra="", batch=4, **dataset):
        text = RECIPE.replace("batch = 4", f"batch = {batch}") + extra
        recipe, own = tmp_path / f"{name}.toml", tmp_path / "dataset"
        recipe.write_text(text, encoding="utf-8")
        if own.exists():
            segpipe.plan(own, work=tmp_path / name, recipe=recipe, jobs=1)
            return own, Workspace(tmp_path / name)
        return planned_once(tmp_path / name, text, **dataset), Workspace(tmp_path / name)

    return plan


def job_of(workspace, **settings) -> FoldJob:
    plan = Plan.read(workspace.plan)
    index = prepare_arrays(Project(workspace.root, workspace, workers=1), plan, "3d_fullres")
    return fold_job(
        FoldWork(Project(workspace.root, workspace), plan, "3d_fullres", FoldSettings(epochs=1, **settings), index)
    )


def weights(workspace, name="tiny", configuration="3d_fullres", fold=0):
    from safetensors.torch import load_file

    return load_file(workspace.fold(configuration, name, fold).weights)


def farthest(a, b):
    return max(float((a[k] - b[k]).abs().max()) for k in a)
