"""Folders of trained nnU-Nets that no nnU-Net wrote: kinds that the golden ones are not of, and what is refused."""

import json

import numpy as np
import pytest
import torch

import segpipe
from segpipe.core.labels import Labels, Target
from segpipe.errors import ModelError, PlanError, SegpipeError
from segpipe.execution.device import choose_runtime
from segpipe.inference.predictor import Predictor, PredictorOptions
from segpipe.models.file import ModelFile
from segpipe.models.nnunet.folder import read_model_folder
from segpipe.models.nnunet.vocabulary import trains_as_planned
from segpipe.models.read import read_any_model
from segpipe.networks.build import build_network
from segpipe.planning.schema import Plan
from tests.unit.test_inference import small_plan

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
    return ModelFile(plan.to_json(), configuration, "tiny", axes, weights, previous)


def exported(model, folder):
    model.write(folder / "model.segpipe")
    segpipe.export_model(folder / "model.segpipe", folder / "nnunet")
    return next((folder / "nnunet").iterdir())


def edit(folder, **changes):
    """Change plans.json; a key with dots leads into it."""
    plans = json.loads((folder / "plans.json").read_text())
    for path, value in changes.items():
        *where, last = path.split("__")
        inner = plans
        for key in where:
            inner = inner[key]
        inner[last] = value
    (folder / "plans.json").write_text(json.dumps(plans))


def edit_checkpoint(folder, **changes):
    for file in folder.glob("fold_*/checkpoint_final.pth"):
        torch.save(torch.load(file, weights_only=True) | changes, file)


def labels_of(path, image, folds=(), **options):
    predictor = Predictor.load(path, choose_runtime("cpu"), PredictorOptions(folds=folds, engine="torch", **options))
    return predictor.predict(image, (2.0, 1.5, 1.0))


@pytest.fixture
def image():
    return np.random.default_rng(3).normal(100, 20, (18, 22, 30)).astype(np.float32)


@pytest.mark.parametrize("labels", [None, REGIONS])
def test_a_model_that_went_to_nnunet_and_back_predicts_the_same(tmp_path, image, labels):
    plan = small_plan()
    plan = plan if labels is None else plan.model_copy(update={"labels": labels})
    folder = exported(model_of(plan, folds=("0", "1")), tmp_path)
    before, after = labels_of(tmp_path / "model.segpipe", image), labels_of(folder, image)
    if labels is None:
        # nnU-Net's labels are numbered; 130 and 300 became 1 and 2.
        before = np.searchsorted([0, 130, 300], before)
    np.testing.assert_array_equal(before, after)
    assert len(np.unique(after)) > 1
    one = labels_of(folder, image, ("1",))
    assert (one != after).any()


def test_plans_of_before_2_3_1(tmp_path, image):
    folder = exported(model_of(small_plan()), tmp_path)
    now = labels_of(folder, image)
    plans = json.loads((folder / "plans.json").read_text())
    configuration = plans["configurations"]["3d_fullres"]
    given = configuration.pop("architecture")["arch_kwargs"]
    configuration |= {
        "UNet_class_name": "PlainConvUNet", "UNet_base_num_features": given["features_per_stage"][0],
        "unet_max_num_features": max(given["features_per_stage"]), "n_conv_per_stage_encoder": given["n_conv_per_stage"],
        "n_conv_per_stage_decoder": given["n_conv_per_stage_decoder"], "conv_kernel_sizes": given["kernel_sizes"],
        "pool_op_kernel_sizes": given["strides"], "num_pool_per_axis": [2, 2, 2],
    }  # fmt: skip
    plans["foreground_intensity_properties_by_modality"] = plans.pop("foreground_intensity_properties_per_channel")
    (folder / "plans.json").write_text(json.dumps(plans))
    np.testing.assert_array_equal(labels_of(folder, image), now)


def test_what_a_configuration_inherits(tmp_path):
    folder = exported(model_of(small_plan()), tmp_path)
    plans = json.loads((folder / "plans.json").read_text())
    plans["configurations"]["base"] = plans["configurations"]["3d_fullres"]
    plans["configurations"]["3d_fullres"] = {"inherits_from": "base", "spacing": [3.0, 3.0, 3.0]}
    (folder / "plans.json").write_text(json.dumps(plans))
    plan = Plan.model_validate_json(read_model_folder(folder).plan_json)
    assert plan.configuration("3d_fullres").spacing_mm == (3.0, 3.0, 3.0)
    edit(folder, configurations__base__inherits_from="3d_fullres")
    with pytest.raises(ModelError, match="inherits from"):
        read_model_folder(folder)


def test_a_cascades_first_stage_is_found_beside_it(tmp_path, image):
    plan = small_plan().model_copy(update={"labels": REGIONS})
    low = plan.configuration("3d_fullres").model_copy(update={"name": "3d_lowres", "spacing_mm": (4.0, 3.0, 2.0)})
    full = plan.configuration("3d_fullres").model_copy(
        update={"name": "3d_cascade_fullres", "previous_stage": "3d_lowres"}
    )
    plan = plan.model_copy(update={"configurations": {"3d_lowres": low, "3d_cascade_fullres": full}})
    model = model_of(plan, "3d_cascade_fullres", previous=model_of(plan, "3d_lowres"))
    model.write(tmp_path / "model.segpipe")
    segpipe.export_model(tmp_path / "model.segpipe", tmp_path / "nnunet")
    second = next((tmp_path / "nnunet").glob("*__3d_cascade_fullres"))
    np.testing.assert_array_equal(labels_of(second, image), labels_of(tmp_path / "model.segpipe", image))
    with pytest.raises(ModelError, match="holds 2 trained models"):
        read_model_folder(tmp_path / "nnunet")
    next((tmp_path / "nnunet").glob("*__3d_lowres")).rename(tmp_path / "elsewhere")
    with pytest.raises(ModelError, match=r"first stage was looked for as nnUNetTrainer__.*__3d_lowres"):
        read_model_folder(second)


def test_convolutions_without_bias_and_weights_of_several_devices(tmp_path, image):
    """Names that DistributedDataParallel and torch.compile put before the weights'; biases that are not there are 0."""
    folder = exported(model_of(small_plan()), tmp_path)
    now = labels_of(folder, image)
    held = torch.load(folder / "fold_0" / "checkpoint_final.pth", weights_only=True)
    assert all((v == 0).all() for n, v in held["network_weights"].items() if n.endswith("conv.bias"))
    renamed = {f"module._orig_mod.{n}": v for n, v in held["network_weights"].items() if not n.endswith("conv.bias")}
    torch.save(held | {"network_weights": renamed}, folder / "fold_0" / "checkpoint_final.pth")
    np.testing.assert_array_equal(labels_of(folder, image), now)


def test_mirroring_is_the_checkpoints(tmp_path):
    folder = exported(model_of(small_plan(), axes=(0, 2)), tmp_path)
    assert read_model_folder(folder).mirror_axes == (0, 2)
    edit_checkpoint(folder, inference_allowed_mirroring_axes=None)
    assert read_model_folder(folder).mirror_axes == ()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"configurations__3d_fullres__preprocessor_name": "MyPreprocessor"}, "MyPreprocessor"),
        ({"configurations__3d_fullres__resampling_fn_data": "resample_torch_fornnunet"}, "resample_torch_fornnunet"),
        ({"configurations__3d_fullres__resampling_fn_probabilities_kwargs": {"order": 0}}, "order.* 0"),
        ({"configurations__3d_fullres__normalization_schemes": ["MyNormalization"]}, "MyNormalization"),
        ({"configurations__3d_fullres__architecture__network_class_name": "my.PrimusM"}, "my.PrimusM"),
        ({"configurations__3d_fullres__architecture__arch_kwargs__nonlin": "torch.nn.GELU"}, "torch.nn.GELU"),
        ({"configurations__3d_fullres__architecture__arch_kwargs__norm_op": "torch.nn.LayerNorm"}, "torch.nn.LayerNorm"),
        ({"configurations__3d_fullres__architecture__arch_kwargs__squeeze_excitation": True}, "squeeze_excitation"),
        ({"label_manager": "MyLabels"}, "MyLabels"),
        ({"image_reader_writer": "MyReader"}, "MyReader"),
    ],
)  # fmt: skip
def test_what_cannot_be_honoured_is_refused_by_name(tmp_path, change, named):
    folder = exported(model_of(small_plan()), tmp_path)
    edit(folder, **change)
    with pytest.raises(ModelError, match=named):
        read_model_folder(folder)


def test_trainers():
    ours = (
        "",
        "NoMirroring",
        "_250epochs",
        "_4000epochs_NoMirroring",
        "DA5",
        "_onlyMirror01_DASegOrd0",
        "BN",
        "_DASegOrd0_NoMirroring",
    )
    assert all(trains_as_planned(f"nnUNetTrainer{name}") for name in ours)
    theirs = "MyTrainer", "nnUNetTrainerUMambaBot", "nnUNet_Primus_M_Trainer", "nnUNetTrainer_250epochs_mine"
    assert not any(trains_as_planned(name) for name in theirs)


def test_a_custom_trainer_is_refused_by_name(tmp_path):
    folder = exported(model_of(small_plan()), tmp_path)
    edit_checkpoint(folder, trainer_name="nnUNetTrainerMine")
    with pytest.raises(ModelError, match="nnUNetTrainerMine"):
        read_model_folder(folder)


def test_a_trainer_with_batch_normalisation(tmp_path):
    plan = small_plan()
    chosen = plan.configuration("3d_fullres")
    network = chosen.network.model_copy(update={"options": {"norm": "batch"}})
    plan = plan.model_copy(update={"configurations": {"3d_fullres": chosen.model_copy(update={"network": network})}})
    folder = exported(model_of(plan), tmp_path)
    edit(folder, configurations__3d_fullres__architecture__arch_kwargs__norm_op="torch.nn.InstanceNorm3d")
    edit_checkpoint(folder, trainer_name="nnUNetTrainerBN")
    read = Plan.model_validate_json(read_model_folder(folder).plan_json)
    assert read.configuration("3d_fullres").network.norm == "batch"


def test_nothing_in_a_checkpoint_is_executed(tmp_path):
    class Evil:
        def __reduce__(self):
            return (tmp_path.joinpath("pwned").write_text, ("yes",))

    folder = exported(model_of(small_plan()), tmp_path)
    file = folder / "fold_0" / "checkpoint_final.pth"
    torch.save(torch.load(file, weights_only=True) | {"logging": Evil()}, file)
    with pytest.raises(ModelError, match="holds more than weights"):
        read_model_folder(folder)
    assert not (tmp_path / "pwned").exists()


def test_damaged_and_foreign_folders(tmp_path):
    folder = exported(model_of(small_plan()), tmp_path)
    with pytest.raises(ModelError, match=r"no checkpoint_best.pth in any fold.*checkpoint_final.pth"):
        read_model_folder(folder, checkpoint="checkpoint_best.pth")
    with pytest.raises(ModelError, match=r"no checkpoint_final.pth in fold_3"):
        read_model_folder(folder, folds=("3",))
    file = folder / "fold_0" / "checkpoint_final.pth"
    held = torch.load(file, weights_only=True)
    torch.save(
        held | {"network_weights": {k: v for k, v in held["network_weights"].items() if "seg_layers.0" not in k}}, file
    )
    with pytest.raises(ModelError, match="2 missing"):
        read_model_folder(folder)
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ModelError, match="damaged"):
        read_model_folder(folder)
    (folder / "plans.json").write_text("{")
    with pytest.raises(ModelError, match="cannot be read"):
        read_model_folder(folder)
    with pytest.raises(ModelError, match="no such file or folder"):
        read_any_model(tmp_path / "gone")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"model\.segpipe: no such model"):
        read_any_model(tmp_path / "empty")


def test_what_nnunet_has_not_is_not_exported(tmp_path):
    plan = small_plan()
    chosen = plan.configuration("3d_fullres")
    for change, named in (({"architecture": "u2net"}, "u2net"), ({"options": {"norm": "group"}}, "norm group")):
        network = chosen.network.model_copy(update=change)
        other = plan.model_copy(
            update={"configurations": {"3d_fullres": chosen.model_copy(update={"network": network})}}
        )
        ModelFile(other.to_json(), "3d_fullres", "tiny", (), {}).write(tmp_path / "model.segpipe")
        with pytest.raises(PlanError, match=named):
            segpipe.export_model(tmp_path / "model.segpipe", tmp_path / "out")
    (tmp_path / "out").mkdir(exist_ok=True)
    (tmp_path / "out" / "mine").write_text("")
    with pytest.raises(SegpipeError, match="is not empty"):
        segpipe.export_model(tmp_path / "model.segpipe", tmp_path / "out")


def test_the_reader_says_how_images_are_oriented(tmp_path):
    folder = exported(model_of(small_plan()), tmp_path)
    assert json.loads((folder / "plans.json").read_text())["image_reader_writer"] == "NibabelIOWithReorient"
    for reader, orientation in (("SimpleITKIO", "as_stored"), ("NibabelIOWithReorient", "canonical")):
        edit(folder, image_reader_writer=reader)
        assert Plan.model_validate_json(read_model_folder(folder).plan_json).orientation == orientation
