"""Six scans and a model with two folds, for prediction of many images."""

import json

import numpy as np
import pytest

from segpipe.io.formats import write_volume
from tests.helpers.inference import small_plan
from tests.helpers.nnunet_models import model_of
from tests.phantoms import axis_grid

SHAPE = (16, 20, 24)


def drawn():
    image = np.zeros(SHAPE, dtype=np.float32)
    image[1:6, 2:9, 3:11] = 1
    image[9:14, 12:18, 15:24] = 2
    return image


@pytest.fixture
def six_scans(tmp_path):
    for case in "abcdef":
        write_volume(tmp_path / "in" / f"{case}.nii.gz", drawn() + ord(case) % 3 * 0.01, axis_grid(SHAPE))
    return tmp_path / "in"


@pytest.fixture
def two_fold_model(tmp_path):
    path = tmp_path / "model.segpipe"
    model_of(small_plan(), folds=("0", "1")).write(path)
    return path


def rows_of(out):
    return [json.loads(line) for line in (out / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]
