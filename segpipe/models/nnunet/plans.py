"""Plans and dataset.json of nnU-Net, to and from segpipe's. No torch.

Source: nnunetv2 2.8's files; those written before 2.3.1 describe the network in another way.
"""

from collections.abc import Mapping
from typing import Any

from segpipe.core.labels import Labels, Target
from segpipe.dataset.fingerprint.schema import IntensityStatistics
from segpipe.errors import ModelError, PlanError
from segpipe.models.nnunet.vocabulary import (
    BLOCKS_KEYS,
    CLASSES,
    NORMS,
    ORIENTATIONS,
    PLANS_NAMES,
    RESAMPLER,
    RESAMPLING,
    SCHEMES,
)
from segpipe.networks.spec import NetworkSpec
from segpipe.planning.recipe import TrainingSettings
from segpipe.planning.schema import Configuration, Plan

_NAMES = tuple(IntensityStatistics.model_fields)


def plan_to_nnunet(plan: Plan) -> dict[str, Any]:
    """Return the plan in the form of nnU-Net's plans.json (nnunetv2 2.8).

    Raises
    ------
    PlanError
        If a network is none that nnU-Net builds.
    """
    plans_name = PLANS_NAMES.get(plan.planner_preset, plan.planner_preset or "nnUNetPlans")
    return {
        "dataset_name": plan.dataset_name,
        "plans_name": plans_name,
        "original_median_spacing_after_transp": list(plan.original_median_spacing_mm),
        "original_median_shape_after_transp": [round(n) for n in plan.original_median_shape],
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": list(plan.transpose_forward),
        "transpose_backward": list(plan.transpose_backward),
        "configurations": {name: _configuration(c, plan, plans_name) for name, c in plan.configurations.items()},
        "experiment_planner_used": plan.planner_preset or "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {
            str(i): {name: getattr(s, name) for name in _NAMES} for i, s in enumerate(plan.intensities)
        },
    }


def dataset_to_nnunet(plan: Plan, ending: str) -> dict[str, Any]:
    """Return channels and labels in the form of nnU-Net's dataset.json; labels are numbered 1, 2, ... where nnU-Net needs them to be.

    Parameters
    ----------
    plan : Plan
    ending : str
        Ending of the images that nnU-Net will be given, such as ``.nii.gz``.
    """
    labels = plan.labels
    number = {value: index for index, value in enumerate(labels.values)}
    named: dict[str, int | list[int]] = {"background": 0}
    for target in labels.targets:
        numbers = [number[v] for v in target.values]
        named[target.name] = numbers if labels.regions else numbers[0]
    if labels.ignore_index is not None:
        named["ignore"] = labels.ignore_index
    order = {"regions_class_order": [number[t.paint] for t in labels.targets]} if labels.regions else {}
    channels = {str(i): name for i, name in enumerate(plan.channel_names)}
    return {"channel_names": channels, "labels": named, **order, "numTraining": 0, "file_ending": ending}


def plan_from_nnunet(
    plans: Mapping[str, Any], dataset: Mapping[str, Any], name: str, *, batch_norm: bool = False
) -> Plan:
    """Return a plan of one configuration from nnU-Net's plans.json and dataset.json.

    Parameters
    ----------
    plans, dataset : mapping
        As read from JSON.
    name : str
        Name of the configuration.
    batch_norm : bool
        The trainer put batch normalisation in the place of the planned one.

    Raises
    ------
    ModelError
        If they ask for something that segpipe does not compute as nnU-Net does; it is named.
    KeyError
        If something is missing.
    """
    reader = plans["image_reader_writer"]
    if reader not in ORIENTATIONS:
        raise ModelError(f"image_reader_writer is {reader}; expected one of {', '.join(ORIENTATIONS)}")
    if plans.get("label_manager", "LabelManager") != "LabelManager":
        raise ModelError(f"label_manager is {plans['label_manager']}; only nnU-Net's own LabelManager can be honoured")
    labels, channels = _labels(dataset), _in_order(dataset.get("channel_names") or dataset["modality"])
    configuration = _configuration_from(resolved(plans, name), name, len(channels), batch_norm=batch_norm)
    measured = plans.get("foreground_intensity_properties_per_channel")
    measured = plans["foreground_intensity_properties_by_modality"] if measured is None else measured
    return Plan(
        dataset_name=plans["dataset_name"],
        fingerprint_digest="",
        recipe=plans["plans_name"],
        planner_preset=plans.get("experiment_planner_used", ""),
        orientation="canonical" if ORIENTATIONS[reader] == "canonical" else "as_stored",
        transpose_forward=tuple(plans["transpose_forward"]),
        transpose_backward=tuple(plans["transpose_backward"]),
        channel_names=tuple(str(c) for c in channels),
        labels=labels,
        original_median_spacing_mm=tuple(plans.get("original_median_spacing_after_transp", ())),
        original_median_shape=tuple(plans.get("original_median_shape_after_transp", ())),
        intensities=tuple(
            _statistics(s, needed=scheme == "ct")
            for s, scheme in zip(_in_order(measured), configuration.normalisation, strict=False)
        ),
        configurations={name: configuration},
        labels_are_inside=True,
        mirror_axes=(),
        training=TrainingSettings(),
        decisions=(),
    )


def resolved(plans: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return a configuration with all that it inherits, its own entries winning.

    Raises
    ------
    ModelError
        If there is none of that name.
    """
    known = plans["configurations"]
    if name not in known:
        raise ModelError(f"plans.json has no configuration {name!r}; it has {', '.join(known)}")
    seen, found = [name], dict(known[name])
    while parent := found.pop("inherits_from", None):
        if parent in seen or parent not in known:
            raise ModelError(f"configuration {name} inherits from {parent}, which is missing or inherits from it")
        seen.append(parent)
        found = {**known[parent], **{k: v for k, v in found.items() if k != "inherits_from"}}
    return found


def _configuration(configuration: Configuration, plan: Plan, plans_name: str) -> dict[str, Any]:
    if configuration.previous_stage is not None and "3d_fullres" in plan.configurations:
        return {"inherits_from": "3d_fullres", "previous_stage": configuration.previous_stage}
    exported: dict[str, Any] = {
        "data_identifier": f"{plans_name}_{configuration.name}",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": configuration.batch_size,
        "patch_size": list(configuration.patch_size),
        "median_image_size_in_voxels": list(configuration.median_shape),
        "spacing": list(configuration.spacing_mm),
        "normalization_schemes": [SCHEMES[s] for s in configuration.normalisation],
        "use_mask_for_norm": list(configuration.use_mask_for_norm),
        **{f"resampling_fn_{what}": RESAMPLER for what in RESAMPLING},
        **{f"resampling_fn_{what}_kwargs": dict(how) for what, how in RESAMPLING.items()},
        "architecture": _architecture(configuration.network),
        "batch_dice": configuration.batch_dice,
    }
    if configuration.previous_stage is not None:
        exported["previous_stage"] = configuration.previous_stage
    if configuration.name == "3d_lowres" and "3d_cascade_fullres" in plan.configurations:
        exported["next_stage"] = "3d_cascade_fullres"
    return exported


def _architecture(network: NetworkSpec) -> dict[str, Any]:
    if network.architecture not in CLASSES:
        raise PlanError(
            f"network {network.architecture}: nnU-Net has none like it; its plans hold {', '.join(CLASSES)}"
        )
    if network.norm not in NORMS:
        raise PlanError(
            f"norm {network.norm}: nnU-Net's networks have {' or '.join(NORMS)} normalisation; only such a network is exported"
        )
    dims = network.dims
    return {
        "network_class_name": CLASSES[network.architecture],
        "arch_kwargs": {
            "n_stages": len(network.features),
            "features_per_stage": list(network.features),
            "conv_op": f"torch.nn.modules.conv.Conv{dims}d",
            "kernel_sizes": [list(k) for k in network.kernel_sizes],
            "strides": [list(s) for s in network.strides],
            BLOCKS_KEYS[network.architecture]: list(network.encoder_blocks),
            "n_conv_per_stage_decoder": list(network.decoder_convs),
            "conv_bias": True,
            "norm_op": f"torch.nn.modules.{NORMS[network.norm]}{dims}d",
            "norm_op_kwargs": {"eps": 1e-05, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }


def _labels(dataset: Mapping[str, Any]) -> Labels:
    """Labels by nnU-Net's rules: regions where a name stands for several values; every entry is one then, in the file's order."""
    declared = dict(dataset["labels"])
    ignore = declared.pop("ignore", None)
    values = {
        str(n): tuple(int(v) for v in (entry if isinstance(entry, (list, tuple)) else [entry]))
        for n, entry in declared.items()
    }
    regions = any(len(v) > 1 for v in values.values())
    foreground = {n: v for n, v in values.items() if set(v) != {0}}
    if regions:
        order = dataset.get("regions_class_order") or ()
        if len(order) != len(foreground):
            raise ModelError(
                f"dataset.json: regions_class_order is {list(order)}; expected one value for each of {', '.join(foreground)}"
            )
        targets = tuple(
            Target(name=n, values=v, paint=int(paint)) for (n, v), paint in zip(foreground.items(), order, strict=True)
        )
    else:
        by_value = sorted(foreground.items(), key=lambda item: item[1])
        targets = tuple(Target(name=n, values=v, paint=v[0]) for n, v in by_value)
    return Labels(targets=targets, regions=regions, ignore=ignore, n_entries=len(dataset["labels"]))


def _configuration_from(found: Mapping[str, Any], name: str, n_channels: int, *, batch_norm: bool) -> Configuration:
    if found["preprocessor_name"] != "DefaultPreprocessor":
        raise ModelError(f"preprocessor_name is {found['preprocessor_name']}; only DefaultPreprocessor can be honoured")
    for what, how in RESAMPLING.items():
        _require_resampling(found, what, how)
    schemes = {theirs: ours for ours, theirs in SCHEMES.items()}
    normalisation = [schemes.get(s, s) for s in found["normalization_schemes"]]
    unknown = [s for s in normalisation if s not in SCHEMES]
    if unknown:
        raise ModelError(f"normalization_schemes holds {unknown[0]}; expected {', '.join(schemes)}")
    if len(normalisation) != n_channels:
        raise ModelError(f"{len(normalisation)} normalization_schemes, but dataset.json names {n_channels} channel(s)")
    return Configuration(
        name=name,
        spacing_mm=tuple(found["spacing"]),
        median_shape=tuple(found.get("median_image_size_in_voxels", ())),
        patch_size=tuple(found["patch_size"]),
        batch_size=int(found["batch_size"]),
        batch_dice=bool(found["batch_dice"]),
        normalisation=tuple(normalisation),
        use_mask_for_norm=tuple(_in_order(found["use_mask_for_norm"])),
        network=_network_from(found, batch_norm=batch_norm),
        estimated_memory_gb=0.0,
        previous_stage=found.get("previous_stage"),
    )


def _require_resampling(found: Mapping[str, Any], what: str, how: Mapping[str, Any]) -> None:
    key = f"resampling_fn_{what}"
    function, given = found.get(key, RESAMPLER), found.get(f"{key}_kwargs", {})
    if function != RESAMPLER:
        raise ModelError(f"{key} is {function}; only {RESAMPLER} can be honoured")
    other = {k: v for k, v in given.items() if k in how and v != how[k]}
    other |= {k: v for k, v in given.items() if k not in how}
    if other:
        raise ModelError(f"{key}_kwargs asks for {other}; only {dict(how)} can be honoured")


def _network_from(found: Mapping[str, Any], *, batch_norm: bool) -> NetworkSpec:
    if "architecture" in found:
        class_name = str(found["architecture"]["network_class_name"])
        given = dict(found["architecture"]["arch_kwargs"])
    else:
        class_name, given = _old_architecture(found)
    # The package that holds them has moved; the class is the same.
    architecture = {path.rpartition(".")[2]: ours for ours, path in CLASSES.items()}.get(class_name.rpartition(".")[2])
    if architecture is None:
        raise ModelError(f"network_class_name is {class_name}; segpipe builds {', '.join(CLASSES.values())}")
    strides = _each_axis(given["strides"], given["n_stages"], len(found["patch_size"]))
    norm = _require_blocks(given, len(found["patch_size"]), batch_norm=batch_norm)
    n = int(given["n_stages"])
    features = given["features_per_stage"]
    return NetworkSpec(
        architecture=architecture,
        features=tuple(features) if isinstance(features, list) else (features,) * n,
        kernel_sizes=_each_axis(given["kernel_sizes"], n, len(found["patch_size"])),
        strides=strides,
        encoder_blocks=_each_stage(given[BLOCKS_KEYS[architecture]], n),
        decoder_convs=_each_stage(given["n_conv_per_stage_decoder"], n - 1),
        options={"norm": norm},
    )


def _old_architecture(found: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Network of plans written before nnunetv2 2.3.1."""
    class_name = str(found["UNet_class_name"])
    blocks = found["n_conv_per_stage_encoder"]
    widths = [min(found["UNet_base_num_features"] * 2**i, found["unet_max_num_features"]) for i in range(len(blocks))]
    return class_name, {
        "n_stages": len(blocks),
        "features_per_stage": widths,
        "kernel_sizes": found["conv_kernel_sizes"],
        "strides": found["pool_op_kernel_sizes"],
        BLOCKS_KEYS["plain_unet" if class_name == "PlainConvUNet" else "resenc_unet"]: blocks,
        "n_conv_per_stage_decoder": found["n_conv_per_stage_decoder"],
    }


def _require_blocks(given: dict[str, Any], dims: int, *, batch_norm: bool) -> str:
    """Return the normalisation, or raise for building blocks other than segpipe's."""
    default = f"torch.nn.modules.{NORMS['instance']}{dims}d"
    norm_op = given.get("norm_op") or default
    norm = next(
        (ours for ours, theirs in NORMS.items() if norm_op.endswith(f".{theirs.partition('.')[2]}{dims}d")), None
    )
    expected: dict[str, tuple[Any, ...]] = {
        "dropout_op": (None,),
        "nonlin": ("torch.nn.LeakyReLU", "torch.nn.modules.activation.LeakyReLU"),
        "nonlin_first": (False,),
        "block": (None, "dynamic_network_architectures.building_blocks.residual.BasicBlockD"),
        "bottleneck_channels": (None,),
        "stem_channels": (None,),
        "norm_op_kwargs": ({"eps": 1e-05, "affine": True},),
        "nonlin_kwargs": ({"inplace": True}, {"inplace": False}, {}, None),
    }
    for key, accepted in expected.items():
        if key in given and given[key] not in accepted:
            raise ModelError(f"arch_kwargs has {key} = {given[key]}; segpipe's networks have {accepted[0]}")
    known = {*expected, "n_stages", "features_per_stage", "conv_op", "kernel_sizes", "strides", "conv_bias", "norm_op"}
    known |= {*BLOCKS_KEYS.values(), "n_conv_per_stage_decoder", "dropout_op_kwargs", "deep_supervision"}
    if norm is None or set(given) - known:
        what = f"norm_op = {norm_op}" if norm is None else ", ".join(sorted(set(given) - known))
        raise ModelError(f"arch_kwargs has {what}, which segpipe's networks do not have")
    return "batch" if batch_norm else norm


def _statistics(measured: Mapping[str, Any], *, needed: bool) -> IntensityStatistics:
    """Statistics of one channel; where it is not normalised by them they may be missing, and are 0."""
    return IntensityStatistics(**{key: float(measured[key] if needed else measured.get(key, 0.0)) for key in _NAMES})


def _in_order(entries: Any) -> list[Any]:
    """Values of a list, or of a mapping with the keys "0", "1", ..."""
    return list(entries) if isinstance(entries, list) else [entries[k] for k in sorted(entries, key=int)]


def _each_stage(value: Any, n: int) -> tuple[int, ...]:
    return (int(value),) * n if isinstance(value, int) else tuple(int(v) for v in value)


def _each_axis(value: Any, n: int, dims: int) -> tuple[tuple[int, ...], ...]:
    stages = [value] * n if isinstance(value, int) else list(value)
    return tuple((int(s),) * dims if isinstance(s, int) else tuple(int(v) for v in s) for s in stages)
