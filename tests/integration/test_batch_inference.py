"""Commands for models: to nnU-Net and back, rules of post-processing chosen, kept and applied."""

import json

import numpy as np
import pytest

from segpipe.io.formats import read_volume, write_volume
from segpipe.models.file import ModelFile
from tests.helpers.command_line import segpipe
from tests.helpers.inference import small_plan
from tests.helpers.nnunet_models import model_of
from tests.phantoms import axis_grid

SHAPE = (40, 48, 44)


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "model.segpipe"
    model_of(small_plan()).write(path)
    return path


def test_a_model_goes_to_nnunet_and_back_from_the_command_line(model, tmp_path):
    exported = segpipe("export", model, tmp_path / "nnunet", "--json")
    assert exported.returncode == 0, exported.stderr
    assert "130 becomes 1, 300 becomes 2" in json.loads(exported.stdout)["labels"]
    folder = json.loads(exported.stdout)["folder"]
    imported = segpipe("import", folder, tmp_path / "back.segpipe")
    assert imported.returncode == 0, imported.stderr
    assert "plain_unet" in imported.stdout
    image = tmp_path / "in" / "case_00.nii.gz"
    write_volume(image, np.random.default_rng(0).normal(100, 20, SHAPE).astype(np.float32), axis_grid(SHAPE))
    for name, given in (("a", model), ("b", tmp_path / "back.segpipe"), ("c", folder)):
        how = ["--device", "cpu", "--no-tta", "--engine", "torch", "--precision", "float32", "--save-uncertainty"]
        assert segpipe("predict", image, tmp_path / name, "--model", given, *how).returncode == 0
    a, b, c = (read_volume(tmp_path / name / "case_00.nii.gz").array for name in "abc")
    np.testing.assert_array_equal(b, c)
    np.testing.assert_array_equal(np.searchsorted([0, 130, 300], a), b)
    assert (tmp_path / "a" / "case_00_uncertainty.nii.gz").is_file()
    refused = segpipe("import", tmp_path / "a", tmp_path / "x.segpipe")
    assert (refused.returncode, "no trained nnU-Net model in it" in refused.stderr) == (1, True)
    assert segpipe("predict", image, tmp_path / "d", "--model", model, "--shard", "3/2").returncode == 2


def test_rules_are_chosen_kept_and_applied_from_the_command_line(model, tmp_path):
    grid = axis_grid(SHAPE)
    truth = np.zeros(SHAPE, dtype=np.uint16)
    truth[5:20, 5:20, 5:20] = 130
    noisy = truth.copy()
    noisy[30:33, 30:33, 30:33] = 130
    write_volume(tmp_path / "truth" / "a.nii.gz", truth, grid)
    write_volume(tmp_path / "found" / "a.nii.gz", noisy, grid)
    chosen = segpipe("postprocess", tmp_path / "found", "--references", tmp_path / "truth", "--model", model)
    assert chosen.returncode == 0, chosen.stderr
    assert "yes" in chosen.stdout
    assert ModelFile.read(model).postprocessing_json
    applied = segpipe("postprocess", tmp_path / "found", tmp_path / "clean", "--model", model)
    assert applied.returncode == 0, applied.stderr
    assert "1 of them changed" in applied.stdout
    np.testing.assert_array_equal(read_volume(tmp_path / "clean" / "a.nii.gz").array[0], truth)
    assert segpipe("postprocess", tmp_path / "found", "--model", model).returncode == 2
