"""Folders of trained nnU-Nets that no nnU-Net wrote: kinds that the golden ones are not of, and what is refused."""

import json

import pytest
import torch

import segpipe
from segpipe.errors import ModelError, PlanError, SegpipeError
from segpipe.models.file import ModelFile
from segpipe.models.nnunet.folder import read_model_folder
from segpipe.models.nnunet.vocabulary import trains_as_planned
from segpipe.models.read import read_any_model
from segpipe.planning.schema import Plan
from tests.helpers.inference import small_plan
from tests.helpers.nnunet_models import exported, model_of


def edit(folder, **changes):
    """Change plans.json; a key with dots leads into it."""
    plans = json.loads((folder / "plans.json").read_text(encoding="utf-8"))
    for path, value in changes.items():
        *where, last = path.split("__")
        inner = plans
        for key in where:
            inner = inner[key]
        inner[last] = value
    (folder / "plans.json").write_text(json.dumps(plans), encoding="utf-8")


def edit_checkpoint(folder, **changes):
    for file in folder.glob("fold_*/checkpoint_final.pth"):
        torch.save(torch.load(file, weights_only=True) | changes, file)


def test_what_a_configuration_inherits(tmp_path):
    folder = exported(model_of(small_plan()), tmp_path)
    plans = json.loads((folder / "plans.json").read_text(encoding="utf-8"))
    plans["configurations"]["base"] = plans["configurations"]["3d_fullres"]
    plans["configurations"]["3d_fullres"] = {"inherits_from": "base", "spacing": [3.0, 3.0, 3.0]}
    (folder / "plans.json").write_text(json.dumps(plans), encoding="utf-8")
    plan = Plan.model_validate_json(read_model_folder(folder).plan_json)
    assert plan.configuration("3d_fullres").spacing_mm == (3.0, 3.0, 3.0)
    edit(folder, configurations__base__inherits_from="3d_fullres")
    with pytest.raises(ModelError, match="inherits from"):
        read_model_folder(folder)


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
    (folder / "plans.json").write_text("{", encoding="utf-8")
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
    (tmp_path / "out" / "mine").write_text("", encoding="utf-8")
    with pytest.raises(SegpipeError, match="is not empty"):
        segpipe.export_model(tmp_path / "model.segpipe", tmp_path / "out")


def test_the_reader_says_how_images_are_oriented(tmp_path):
    folder = exported(model_of(small_plan()), tmp_path)
    assert (
        json.loads((folder / "plans.json").read_text(encoding="utf-8"))["image_reader_writer"]
        == "NibabelIOWithReorient"
    )
    for reader, orientation in (("SimpleITKIO", "as_stored"), ("NibabelIOWithReorient", "canonical")):
        edit(folder, image_reader_writer=reader)
        assert Plan.model_validate_json(read_model_folder(folder).plan_json).orientation == orientation
