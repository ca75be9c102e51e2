"""Networks that count, and a fingerprint to plan with."""

from math import prod

import pytest

import segpipe
from segpipe.models.nnunet.fingerprint import read_fingerprint
from segpipe.networks.danet import PositionAttention
from segpipe.networks.segmenter import Segmenter
from segpipe.networks.spec import NetworkChoice
from segpipe.planning import make_plan
from segpipe.planning.recipe import PlannerSettings, Recipe


def fingerprint(shape=(40, 48, 56), spacing=(1.0, 1.0, 1.0), n=20):
    return read_fingerprint(
        {
            "num_training": n, "channel_names": ["T1"], "num_labels_with_background": 3, "spacings": [list(spacing)] * 3,
            "shapes_after_crop": [list(shape)] * 3, "median_relative_size_after_cropping": 1.0,
        }
    )  # fmt: skip


def base(measured, **planner):
    return make_plan(measured, Recipe(name="tiny", description="", planner=PlannerSettings(base_features=4, **planner)))


def choice(name, **options):
    return NetworkChoice(name=name, options=options)


class Counting:
    """A probe without torch: so many bytes a voxel, and edges of multiples of a number."""

    def __init__(self, per_voxel=1000, fixed=0, divisor=16, only_dims=None):
        self.per_voxel, self.fixed, self.divisor, self.only_dims, self.asked = per_voxel, fixed, divisor, only_dims, []

    def step_bytes(self, network, patch, channels, activation_bytes):
        self.asked.append(patch)
        probe = self

        class Need:
            fixed = probe.fixed
            per_sample = probe.per_voxel * prod(patch)

        return Need

    def problem(self, network, patch, channels):
        if self.only_dims and len(patch) != self.only_dims:
            return f"knows {self.only_dims} axes only"
        return None if all(n % self.divisor == 0 for n in patch) else "does not divide"


# What is measured


class Attending(Segmenter):
    """Position attention alone."""

    def __init__(self, channels):
        super().__init__(2, (1, 1))
        self.attention = PositionAttention(channels, 2)

    def logits(self, x, *, every):
        return [self.attention(x)]


# From a dataset


@pytest.fixture(scope="module")
def planned_networks(small_dataset, tmp_path_factory):
    work = tmp_path_factory.mktemp("networks") / "work"
    recipe = work.parent / "tiny.toml"
    recipe.write_text(
        'name = "tiny"\ndescription = ""\n[planner]\nbase_features = 4\nmax_batch = 2\n'
        "[training]\nlearning_rate = 0.01\nmomentum = 0.9\nepochs = 1\niterations_per_epoch = 2\nvalidation_batches = 1\n",
        encoding="utf-8",
    )
    segpipe.plan(small_dataset, work=work, recipe=recipe, jobs=1)
    return small_dataset, work
