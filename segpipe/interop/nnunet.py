"""nnU-Net's fingerprints and plans, to and from segpipe's. No torch, no nnU-Net."""

from collections.abc import Mapping
from typing import Any

from segpipe.errors import PlanError
from segpipe.fingerprint.schema import CaseFingerprint, Fingerprint, IntensityStatistics
from segpipe.labels import Labels
from segpipe.networks.spec import NetworkSpec
from segpipe.planning.schema import Configuration, Plan

_SCHEMES = {
    "ct": "CTNormalization",
    "zscore": "ZScoreNormalization",
    "none": "NoNormalization",
    "rescale_0_1": "RescaleTo01Normalization",
    "rgb_0_1": "RGBTo01Normalization",
}
_CLASSES = {
    "plain_unet": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
    "resenc_unet": "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet",
}
_PLANS_NAMES = {
    "ExperimentPlanner": "nnUNetPlans",
    "nnUNetPlannerResEncM": "nnUNetResEncUNetMPlans",
    "nnUNetPlannerResEncL": "nnUNetResEncUNetLPlans",
    "nnUNetPlannerResEncXL": "nnUNetResEncUNetXLPlans",
}


def read_fingerprint(mapping: Mapping[str, Any]) -> Fingerprint:
    """Fingerprint from plain numbers: what a planner needs and nothing more.

    Parameters
    ----------
    mapping : mapping
        ``num_training``, ``channel_names``, ``num_labels_with_background``, ``spacings`` and ``shapes_after_crop``
        (one triple (z, y, x) a case), ``median_relative_size_after_cropping``.

    Returns
    -------
    Fingerprint
        Without intensities, and with labels named after their number.
    """
    n_labels = int(mapping["num_labels_with_background"])
    return Fingerprint(
        dataset_name=str(mapping.get("name", "imported")),
        dataset_digest="",
        software="",
        channel_names=tuple(str(c) for c in mapping["channel_names"]),
        labels=Labels.plain({f"label_{i}": i for i in range(1, n_labels)}),
        n_training_cases=int(mapping["num_training"]),
        cases=tuple(
            CaseFingerprint(
                case=f"case_{i:05d}", shape=tuple(shape), spacing_mm=tuple(spacing), shape_after_crop=tuple(shape)
            )
            for i, (spacing, shape) in enumerate(zip(mapping["spacings"], mapping["shapes_after_crop"], strict=True))
        ),
        intensities=(),
        median_relative_size_after_cropping=float(mapping["median_relative_size_after_cropping"]),
    )


def plan_to_nnunet(plan: Plan) -> dict[str, Any]:
    """Return the plan in the form of nnU-Net's plans.json (nnunetv2 2.8)."""
    plans_name = _PLANS_NAMES.get(plan.planner_preset, plan.planner_preset)
    return {
        "dataset_name": plan.dataset_name,
        "plans_name": plans_name,
        "original_median_spacing_after_transp": list(plan.original_median_spacing_mm),
        "original_median_shape_after_transp": [round(n) for n in plan.original_median_shape],
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": list(plan.transpose_forward),
        "transpose_backward": list(plan.transpose_backward),
        "configurations": {name: _configuration(c, plan, plans_name) for name, c in plan.configurations.items()},
        "experiment_planner_used": plan.planner_preset,
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {
            str(i): _intensities(s) for i, s in enumerate(plan.intensities)
        },
    }


def _configuration(configuration: Configuration, plan: Plan, plans_name: str) -> dict[str, Any]:
    if configuration.previous_stage is not None:
        return {"inherits_from": "3d_fullres", "previous_stage": configuration.previous_stage}
    resampling = {"order_z": 0, "force_separate_z": None}
    exported = {
        "data_identifier": f"{plans_name}_{configuration.name}",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": configuration.batch_size,
        "patch_size": list(configuration.patch_size),
        "median_image_size_in_voxels": list(configuration.median_shape),
        "spacing": list(configuration.spacing_mm),
        "normalization_schemes": [_SCHEMES[s] for s in configuration.normalisation],
        "use_mask_for_norm": list(configuration.use_mask_for_norm),
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_seg": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": {"is_seg": False, "order": 3, **resampling},
        "resampling_fn_seg_kwargs": {"is_seg": True, "order": 1, **resampling},
        "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
        "resampling_fn_probabilities_kwargs": {"is_seg": False, "order": 1, **resampling},
        "architecture": _architecture(configuration.network),
        "batch_dice": configuration.batch_dice,
    }
    if configuration.name == "3d_lowres" and "3d_cascade_fullres" in plan.configurations:
        exported["next_stage"] = "3d_cascade_fullres"
    return exported


def _architecture(network: NetworkSpec) -> dict[str, Any]:
    if network.architecture not in _CLASSES:
        raise PlanError(
            f"network {network.architecture}: nnU-Net has none like it; its plans hold {', '.join(_CLASSES)}"
        )
    if network.norm != "instance":
        raise PlanError(
            f"norm {network.norm}: nnU-Net's plans hold instance normalisation; only a network with that is exported"
        )
    dims = network.dims
    blocks_key = "n_conv_per_stage" if network.architecture == "plain_unet" else "n_blocks_per_stage"
    return {
        "network_class_name": _CLASSES[network.architecture],
        "arch_kwargs": {
            "n_stages": len(network.features),
            "features_per_stage": list(network.features),
            "conv_op": f"torch.nn.modules.conv.Conv{dims}d",
            "kernel_sizes": [list(k) for k in network.kernel_sizes],
            "strides": [list(s) for s in network.strides],
            blocks_key: list(network.encoder_blocks),
            "n_conv_per_stage_decoder": list(network.decoder_convs),
            "conv_bias": True,
            "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dims}d",
            "norm_op_kwargs": {"eps": 1e-05, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }


def _intensities(statistics: IntensityStatistics) -> dict[str, float]:
    return {
        k: getattr(statistics, k) for k in ("max", "mean", "median", "min", "percentile_00_5", "percentile_99_5", "std")
    }
