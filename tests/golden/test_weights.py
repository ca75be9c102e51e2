"""nnU-Net's weights load into the planned networks, and nnU-Net's masks follow."""

import json

import numpy as np
import pytest
import torch

from segpipe.fingerprint.schema import IntensityStatistics
from segpipe.inference.inputs import find_inputs
from segpipe.inference.predictor import Predictor
from segpipe.inference.run import predict as predict_stage
from segpipe.io.formats import read_volume
from segpipe.labels import Labels
from segpipe.modelfile import ModelFile
from segpipe.networks.build import build_network
from segpipe.networks.spec import NetworkSpec
from segpipe.planning.recipe import TrainingSettings
from segpipe.planning.schema import Configuration, Plan
from segpipe.runtime import Runtime

MODELS = {
    "hippocampus_plain_3d": ("3d_narrow", ["0"]),
    "cardiac_resenc_3d_two_folds": ("3d_fullres", ["0", "1"]),
    "cardiac_resenc_2d": ("2d", ["0"]),
}
_SAFE = [np._core.multiarray.scalar, np.dtype, np.dtypes.Float64DType, np.dtypes.Float32DType]


def _spec(arch) -> NetworkSpec:
    kwargs = arch["arch_kwargs"]
    return NetworkSpec(
        architecture="resenc_unet" if "Residual" in arch["network_class_name"] else "plain_unet",
        features=tuple(kwargs["features_per_stage"]),
        kernel_sizes=tuple(map(tuple, kwargs["kernel_sizes"])),
        strides=tuple(map(tuple, kwargs["strides"])),
        encoder_blocks=tuple(kwargs.get("n_conv_per_stage", kwargs.get("n_blocks_per_stage"))),
        decoder_convs=tuple(kwargs["n_conv_per_stage_decoder"]),
    )


def _resolved(plans, name):
    configuration = plans["configurations"][name]
    parent = configuration.get("inherits_from")
    return (_resolved(plans, parent) if parent else {}) | configuration


def _model(folder, configuration_name, folds):
    """The golden model as a segpipe model file: a hand-made import, enough for these three."""
    (model,) = (folder / "model").glob("*/*")
    plans = json.loads((model / "plans.json").read_text())
    dataset = json.loads((model / "dataset.json").read_text())
    c = _resolved(plans, configuration_name)
    schemes = {"ZScoreNormalization": "zscore", "CTNormalization": "ct"}
    configuration = Configuration(
        name=configuration_name, spacing_mm=c["spacing"], median_shape=c["median_image_size_in_voxels"], patch_size=c["patch_size"],
        batch_size=c["batch_size"], batch_dice=c["batch_dice"], normalisation=[schemes[s] for s in c["normalization_schemes"]],
        use_mask_for_norm=c["use_mask_for_norm"], network=_spec(c["architecture"]), estimated_memory_gb=0,
    )  # fmt: skip
    statistics = plans["foreground_intensity_properties_per_channel"]
    plan = Plan(
        dataset_name=plans["dataset_name"], fingerprint_digest="", recipe="imported", planner_preset="", orientation="as_stored",
        transpose_forward=plans["transpose_forward"], transpose_backward=plans["transpose_backward"],
        channel_names=tuple(dataset["channel_names"].values()), labels=Labels.plain({n: v for n, v in dataset["labels"].items() if v}),
        original_median_spacing_mm=plans["original_median_spacing_after_transp"],
        original_median_shape=plans["original_median_shape_after_transp"],
        intensities=[IntensityStatistics(**statistics[k]) for k in sorted(statistics)], configurations={configuration_name: configuration},
        mirror_axes=(0, 1, 2), training=TrainingSettings(), decisions=(),
    )  # fmt: skip
    weights, axes = {}, ()
    for fold in folds:
        with torch.serialization.safe_globals(_SAFE):
            checkpoint = torch.load(
                model / f"fold_{fold}" / "checkpoint_final.pth", weights_only=True, map_location="cpu"
            )
        axes = checkpoint["inference_allowed_mirroring_axes"] or ()
        # nnU-Net stores two aliases of the same tensors.
        weights[fold] = {
            k: v
            for k, v in checkpoint["network_weights"].items()
            if ".all_modules." not in k and not k.startswith("decoder.encoder.")
        }
    return ModelFile(plan.to_json(), configuration_name, "imported", tuple(axes), weights), plan, configuration


@pytest.mark.golden
@pytest.mark.parametrize("name", MODELS)
def test_every_weight_has_its_place(golden, name):
    model, plan, configuration = _model(golden / "nnunet" / name, *MODELS[name])
    network = build_network(configuration.network, len(plan.channel_names), plan.labels.n_outputs)
    for weights in model.folds.values():
        network.load_state_dict(weights, strict=True)


@pytest.mark.golden
@pytest.mark.parametrize(
    ("name", "tta"),
    [
        ("hippocampus_plain_3d", False),
        ("hippocampus_plain_3d", True),
        pytest.param("cardiac_resenc_2d", True, marks=pytest.mark.slow),
        pytest.param("cardiac_resenc_3d_two_folds", False, marks=pytest.mark.slow),
    ],
)
def test_masks_equal_nnunets_own(golden, tmp_path, name, tta):
    """Voxels that differ are at most 2e-4 of the volume: nnU-Net adds up in half precision, so ties fall either way.

    In float32, which is what nnU-Net computes in on a CPU; processors with bfloat16 would else use it.
    """
    folder = golden / "nnunet" / name
    model, _, _ = _model(folder, *MODELS[name])
    model.write(tmp_path / "model.segpipe")
    predictor = Predictor.load(tmp_path / "model.segpipe", Runtime(torch.device("cpu"), None), tta=tta)
    cases = find_inputs(folder / "input", tmp_path / "out", len(predictor.plan.channel_names))
    rows = predict_stage(cases, predictor, tmp_path / "out" / "predictions.jsonl")
    assert [row.status for row in rows] == ["done"] * len(cases)
    for case in cases:
        ours = read_volume(case.output).array
        theirs = read_volume(folder / ("predicted_tta" if tta else "predicted_no_tta") / case.output.name).array
        assert (ours != theirs).mean() <= 2e-4
