"""Fixtures shared by all tests: where the shared real data are, and small datasets."""

import os
from pathlib import Path

import pytest
import torch

from tests.phantoms import write_small_dataset

ROOT = Path(__file__).parents[1]


def pytest_ignore_collect(collection_path, config):
    """Leave out the tests of the simulated device unless they are asked for: they need processes of their own."""
    folder = ROOT / "tests" / "simulated"
    if collection_path != folder:
        return None
    named = [(config.invocation_params.dir / str(word).partition("::")[0]).resolve() for word in config.args]
    return None if any(path.is_relative_to(folder) for path in named) else True


def pytest_collection_modifyitems(config, items):
    for item in items:
        if "gpu" in item.keywords and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="no CUDA device here"))


def _shared(name: str, variable: str) -> Path:
    folder = Path(os.environ.get(variable, ROOT.parent / "shared" / name))
    if not folder.is_dir():
        pytest.skip(f"the shared {name} is not at {folder}; set {variable}")
    return folder


@pytest.fixture(scope="session")
def data() -> Path:
    """The shared real scans."""
    return _shared("data", "SEGPIPE_TEST_DATA")


@pytest.fixture(scope="session")
def golden() -> Path:
    """What nnU-Net itself planned and predicted."""
    return _shared("golden", "SEGPIPE_TEST_GOLDEN")


@pytest.fixture(scope="session")
def small_dataset(tmp_path_factory) -> Path:
    """Six small cases, images/ + labels/, read-only for the tests."""
    return write_small_dataset(tmp_path_factory.mktemp("small") / "dataset")
