"""A small plan, a model with random weights, and folders of images."""

import nibabel as nib
import numpy as np
import pytest
import torch

from segpipe.core.labels import Labels
from segpipe.inference.predictor import Predictor
from segpipe.io.formats import write_volume
from segpipe.models.file import ModelFile
from segpipe.models.nnunet.fingerprint import read_fingerprint
from segpipe.networks.build import build_network
from segpipe.planning import make_plan
from segpipe.planning.recipe import PlannerSettings, Recipe
from tests.engines import predictor_of
from tests.phantoms import axis_grid

LABELS = Labels.plain({"low": 130, "high": 300})


def small_plan(n_channels=1, spacing=(2.0, 1.5, 1.0)):
    fingerprint = read_fingerprint(
        {
            "num_training": 4, "channel_names": ["noNorm"] * n_channels, "num_labels_with_background": 3, "spacings": [list(spacing)] * 4,
            "shapes_after_crop": [[16, 20, 24]] * 4, "median_relative_size_after_cropping": 1.0,
        }
    )  # fmt: skip
    recipe = Recipe(name="tiny", description="", planner=PlannerSettings(base_features=2, max_batch=2))
    return make_plan(fingerprint.model_copy(update={"labels": LABELS}), recipe)


def threshold_predictor(plan) -> Predictor:
    """A network that knows the answer: class 1 between 0.5 and 1.5, class 2 above."""

    def forward(x):
        return torch.cat([-((x[:, :1] - k) ** 2) for k in range(3)], dim=1)

    return predictor_of(plan, forward)


@pytest.fixture(scope="module")
def random_model(tmp_path_factory):
    plan = small_plan()
    torch.manual_seed(0)
    network = build_network(plan.configuration("3d_fullres").network, 1, 3)
    path = tmp_path_factory.mktemp("model") / "model.segpipe"
    ModelFile(plan.to_json(), "3d_fullres", "tiny", (0, 1, 2), {"0": network.state_dict()}).write(path)
    return path


@pytest.fixture
def sound_and_broken(tmp_path):
    """Three sound images and four broken ones."""
    grid = axis_grid((16, 20, 24))
    rng = np.random.default_rng(0)
    for case in ("a", "b", "c"):
        write_volume(tmp_path / "in" / f"{case}.nii.gz", rng.normal(size=grid.shape).astype(np.float32), grid)
    (tmp_path / "in" / "empty.nii.gz").write_bytes(b"")
    (tmp_path / "in" / "text.nrrd").write_text("no image", encoding="utf-8")
    write_volume(tmp_path / "in" / "nan.nii.gz", np.full(grid.shape, np.nan, dtype=np.float32), grid)
    nib.save(nib.Nifti1Image(np.ones((5, 5, 5, 2), dtype=np.float32), np.eye(4)), tmp_path / "in" / "channels.nii.gz")
    return tmp_path / "in"
