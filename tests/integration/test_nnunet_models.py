"""Folders of trained nnU-Nets that no nnU-Net wrote: kinds that the golden ones are not of, and what is refused."""

import json

import numpy as np
import pytest
import tifffile
import torch

import segpipe
from segpipe.core.geometry import Grid
from segpipe.errors import ModelError
from segpipe.execution.device import choose_runtime
from segpipe.inference.predictor import Predictor, PredictorOptions
from segpipe.io.formats import read_volume, write_volume
from segpipe.models.nnunet.folder import read_model_folder
from tests.helpers.inference import small_plan
from tests.helpers.nnunet_models import REGIONS, exported, model_of


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


def test_a_model_of_nnunets_tiff_reader_predicts_stacks_with_the_json_beside_them(tmp_path, image):
    folder = exported(model_of(small_plan()), tmp_path)
    plans = json.loads((folder / "plans.json").read_text(encoding="utf-8"))
    (folder / "plans.json").write_text(json.dumps(plans | {"image_reader_writer": "Tiff3DIO"}), encoding="utf-8")
    grid = Grid.of_spacing(image.shape, (2.0, 1.5, 1.0))
    write_volume(tmp_path / "nifti/a_0000.nii.gz", image, grid)
    (tmp_path / "tiff").mkdir()
    # Metadata that nnU-Net's reader passes over.
    tifffile.imwrite(
        tmp_path / "tiff/a_0000.tif", image, imagej=True, metadata={"axes": "ZYX", "unit": "um", "spacing": 9.0}
    )
    (tmp_path / "tiff/a.json").write_text('{"spacing": [2.0, 1.5, 1.0]}', encoding="utf-8")
    for kind in ("nifti", "tiff"):
        (row,) = segpipe.predict(tmp_path / kind, tmp_path / f"out_{kind}", model=folder, tta=False, device="cpu")
        assert (row.status, row.reason, row.case) == ("done", None, "a")
    expected, found = read_volume(tmp_path / "out_nifti/a.nii.gz"), read_volume(tmp_path / "out_tiff/a.tif")
    np.testing.assert_array_equal(found.array, expected.array)
    assert len(np.unique(found.array)) > 1
    assert found.grid.spacing_mm == (2.0, 1.5, 1.0)
    assert json.loads((tmp_path / "out_tiff/a.json").read_text(encoding="utf-8")) == {"spacing": [2.0, 1.5, 1.0]}


def test_plans_of_before_2_3_1(tmp_path, image):
    folder = exported(model_of(small_plan()), tmp_path)
    now = labels_of(folder, image)
    plans = json.loads((folder / "plans.json").read_text(encoding="utf-8"))
    configuration = plans["configurations"]["3d_fullres"]
    given = configuration.pop("architecture")["arch_kwargs"]
    configuration |= {
        "UNet_class_name": "PlainConvUNet", "UNet_base_num_features": given["features_per_stage"][0],
        "unet_max_num_features": max(given["features_per_stage"]), "n_conv_per_stage_encoder": given["n_conv_per_stage"],
        "n_conv_per_stage_decoder": given["n_conv_per_stage_decoder"], "conv_kernel_sizes": given["kernel_sizes"],
        "pool_op_kernel_sizes": given["strides"], "num_pool_per_axis": [2, 2, 2],
    }  # fmt: skip
    plans["foreground_intensity_properties_by_modality"] = plans.pop("foreground_intensity_properties_per_channel")
    (folder / "plans.json").write_text(json.dumps(plans), encoding="utf-8")
    np.testing.assert_array_equal(labels_of(folder, image), now)


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
