"""nnU-Net's trained-model folders are read as they are, and nnU-Net's masks follow."""

import numpy as np
import pytest

import segpipe
from segpipe.inference.engines.choose import has_openvino
from segpipe.io.formats import read_volume
from segpipe.models.nnunet.checkpoint import with_aliases
from segpipe.models.nnunet.folder import read_model_folder

MODELS = {
    "hippocampus_plain_3d": ("3d_narrow", ("0",)),
    "cardiac_resenc_3d_two_folds": ("3d_fullres", ("0", "1")),
    "cardiac_resenc_2d": ("2d", ("0",)),
}
_SLOW = pytest.mark.slow
CASES = [
    ("hippocampus_plain_3d", False),
    ("hippocampus_plain_3d", True),
    pytest.param("cardiac_resenc_2d", True, marks=_SLOW),
    pytest.param("cardiac_resenc_3d_two_folds", False, marks=_SLOW),
]


@pytest.mark.golden
@pytest.mark.parametrize("name", MODELS)
def test_a_model_folder_is_read(golden, name):
    model = read_model_folder(golden / "nnunet" / name / "model")
    assert (model.configuration, tuple(model.folds)) == MODELS[name]
    assert model.mirror_axes == ((0, 1) if model.configuration == "2d" else (0, 1, 2))


@pytest.mark.golden
@pytest.mark.parametrize("name", MODELS)
def test_the_second_names_of_tensors_are_nnunets(golden, name):
    """Its loading is strict: every name that its checkpoint has, and no other."""
    import torch

    file = next((golden / "nnunet" / name).rglob("fold_0/checkpoint_final.pth"))
    scalars = [np._core.multiarray.scalar, np.dtype, np.dtypes.Float64DType, np.dtypes.Float32DType]
    with torch.serialization.safe_globals(scalars):
        theirs = torch.load(file, weights_only=True)["network_weights"]
    ours = with_aliases(read_model_folder(golden / "nnunet" / name / "model").folds["0"])
    assert set(ours) == set(theirs)
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def differences(golden, tmp_path, name, **how):
    """Share of voxels that differ from nnU-Net's mask, and Dice of each label, of each case."""
    folder = golden / "nnunet" / name
    rows = segpipe.predict(folder / "input", tmp_path / "out", model=folder / "model", device="cpu", **how)
    assert [row.status for row in rows] == ["done"] * len(rows)
    shares, dices = [], []
    for row in rows:
        ours = read_volume(row.output).array
        theirs = read_volume(folder / ("predicted_tta" if how["tta"] else "predicted_no_tta") / row.output.name).array
        shares.append((ours != theirs).mean())
        dices += [
            2 * ((ours == v) & (theirs == v)).sum() / ((ours == v).sum() + (theirs == v).sum())
            for v in np.unique(theirs)[1:]
        ]
    return shares, dices


@pytest.mark.golden
@pytest.mark.parametrize(("name", "tta"), [*CASES, pytest.param("cardiac_resenc_3d_two_folds", True, marks=_SLOW)])
def test_masks_equal_nnunets_own(golden, tmp_path, name, tta):
    """Voxels that differ are at most 2e-4 of the volume: nnU-Net adds up in half precision, so ties fall either way."""
    shares, _ = differences(golden, tmp_path, name, tta=tta, engine="torch", precision="float32")
    assert max(shares) <= 2e-4


@pytest.mark.golden
@pytest.mark.skipif(not has_openvino(), reason="OpenVINO is not installed")
@pytest.mark.parametrize(("name", "tta"), CASES)
def test_openvinos_masks_are_nnunets_in_its_default_precision(golden, tmp_path, monkeypatch, name, tta):
    monkeypatch.setenv("HOME", str(tmp_path))
    for _ in range(2):  # compiled, and from the cache
        _, dices = differences(golden, tmp_path, name, tta=tta, engine="openvino")
        assert np.mean(dices) >= 0.999
        assert min(dices) >= 0.997


@pytest.mark.golden
@pytest.mark.parametrize("name", MODELS)
def test_an_imported_model_is_exported_as_it_was(golden, tmp_path, name):
    folder = golden / "nnunet" / name / "model"
    segpipe.import_model(folder, tmp_path / "a.segpipe")
    segpipe.export_model(tmp_path / "a.segpipe", tmp_path / "exported")
    segpipe.import_model(tmp_path / "exported", tmp_path / "b.segpipe")
    first, again = (read_model_folder(f) for f in (folder, tmp_path / "exported"))
    assert first.configuration == again.configuration
    assert first.mirror_axes == again.mirror_axes
    assert first.plan_json.replace("estimated", "") == again.plan_json.replace("estimated", "")
    assert all((first.folds[f][k] == again.folds[f][k]).all() for f in first.folds for k in first.folds[f])
