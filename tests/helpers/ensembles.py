"""Two models apart and as one file."""

from dataclasses import replace

import pytest

from tests.helpers.inference import small_plan
from tests.helpers.nnunet_models import model_of

SHAPE = (16, 20, 24)


@pytest.fixture
def pair(tmp_path):
    """Two models apart, and as one file."""
    plan = small_plan()
    one, two = model_of(plan), model_of(plan, "2d", folds=("1", "2"), axes=(0, 1))
    one.write(tmp_path / "one.segpipe")
    two.write(tmp_path / "two.segpipe")
    replace(one, others=(two,)).write(tmp_path / "both.segpipe")
    return tmp_path
