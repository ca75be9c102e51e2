"""A recipe of six iterations, and workspaces that are planned and trained with it."""

import pytest

RECIPE = """
name = "tiny"
description = "for tests"
[planner]
base_features = 4
max_batch = 2
budget_gb = 1.0
[training]
optimizer = "adamw"
learning_rate = 0.01
iterations_per_epoch = 6
validation_batches = 2
"""


@pytest.fixture
def planned(tmp_path, planned_once):
    """A small dataset, for reading only, and a workspace where it is planned."""
    (tmp_path / "tiny.toml").write_text(RECIPE, encoding="utf-8")
    return planned_once(tmp_path / "work", RECIPE, prepared=False), tmp_path / "work"


@pytest.fixture
def trained(tmp_path, planned_once):
    """As ``planned``, with fold 0 trained for an epoch."""
    return planned_once(tmp_path / "work", RECIPE, epochs=1), tmp_path / "work"
