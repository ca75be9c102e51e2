"""Models of a plan with random weights, and their export to nnU-Net."""

import torch

import segpipe
from segpipe.core.labels import Labels, Target
from segpipe.models.file import ModelFile
from segpipe.networks.build import build_network

REGIONS = Labels(
    targets=(Target(name="whole", values=(1, 2), paint=1), Target(name="core", values=(2,), paint=2)),
    regions=True,
    n_entries=3,
)


def model_of(plan, configuration="3d_fullres", folds=("0",), axes=(0, 1, 2), previous=None):
    chosen = plan.configuration(configuration)
    n_inputs = len(plan.channel_names) + (0 if chosen.previous_stage is None else len(plan.labels.values) - 1)
    weights = {}
    for number, fold in enumerate(folds):
        torch.manual_seed(number)
        weights[fold] = build_network(chosen.network, n_inputs, plan.labels.n_outputs).state_dict()
    own = tuple(axis for axis in axes if axis < chosen.dims)
    return ModelFile(plan.to_json(), configuration, "tiny", own, weights, previous)


def exported(model, folder):
    model.write(folder / "model.segpipe")
    segpipe.export_model(folder / "model.segpipe", folder / "nnunet")
    return next((folder / "nnunet").iterdir())
