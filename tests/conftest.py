"""Fixtures shared by all tests, the order of the tests, and how many workers run them."""

import os
import shutil
import tempfile
from pathlib import Path

# What is imported below is watched as well; processes that the tests start inherit the folder, and the watch with it.
os.environ["PYTHONPATH"] = os.pathsep.join(
    dict.fromkeys(
        [
            str(Path(__file__).parent / "helpers" / "offline"),
            *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)),
        ]
    )
)
# The workers of pytest-xdist share the processors; the processes that they start inherit this.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Python warns of text that is opened without an encoding, which is an error here (pyproject.toml). It is switched on as an interpreter
# begins: for these workers, and for everything under nox. Commands that tests start are silent about their libraries.
os.environ.setdefault("PYTHONWARNDEFAULTENCODING", "1")
os.environ.setdefault("PYTHONWARNINGS", "ignore::EncodingWarning")

import pytest
import torch
from hypothesis import settings

from tests.helpers.batch import six_scans, two_fold_model  # noqa: F401 - these are fixtures
from tests.helpers.distillation import place  # noqa: F401
from tests.helpers.engine import workplace  # noqa: F401
from tests.helpers.ensembles import pair  # noqa: F401
from tests.helpers.inference import random_model, sound_and_broken  # noqa: F401
from tests.helpers.network_plans import planned_networks  # noqa: F401
from tests.helpers.networks import plugin  # noqa: F401
from tests.helpers.offline.sitecustomize import RECORD
from tests.helpers.once import once, planned_once  # noqa: F401
from tests.helpers.training import planned, trained  # noqa: F401
from tests.helpers.windows import as_on_windows  # noqa: F401
from tests.phantoms import write_small_dataset

ROOT = Path(__file__).parents[1]
# Each worker of pytest-xdist has its own record, since it asks for each test what was added.
ATTEMPTS = Path(tempfile.mkdtemp(prefix="segpipe_tests_")) / "connections.txt"
os.environ[RECORD] = str(ATTEMPTS)
# Workers share the processors: how long an example takes says nothing.
settings.register_profile("tests", deadline=None)
settings.load_profile("tests")
# Longest first, so that no worker is left alone with a long file at the end.
TIERS = ("e2e", "golden", "integration", "unit")


def pytest_xdist_auto_num_workers(config):
    """Give a worker to each processor for whole tiers, and none for single files or tests: they are sooner done without."""
    single = all("::" in word or word.endswith(".py") for word in config.args)
    return 0 if single else None


def pytest_ignore_collect(collection_path, config):
    """Leave out the tests of the simulated device unless they are asked for: they need processes of their own."""
    folder = ROOT / "tests" / "simulated"
    if collection_path != folder:
        return None
    named = [(config.invocation_params.dir / str(word).partition("::")[0]).resolve() for word in config.args]
    return None if any(path.is_relative_to(folder) for path in named) else True


def pytest_collection_modifyitems(config, items):
    for item in items:
        if "tests/e2e/" in item.nodeid:
            item.add_marker(pytest.mark.e2e)
        if "gpu" in item.keywords and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="no CUDA device here"))
    items.sort(key=lambda item: next((n for n, tier in enumerate(TIERS) if f"tests/{tier}/" in item.nodeid), 0))


def pytest_unconfigure():
    """Take the record of connections away."""
    shutil.rmtree(ATTEMPTS.parent, ignore_errors=True)


@pytest.fixture(autouse=True)
def _nothing_leaves_this_machine():
    """Fail a test that tried to connect to another machine, itself or by a process that it started, also where nobody noticed."""
    before = ATTEMPTS.stat().st_size if ATTEMPTS.exists() else 0
    yield
    if ATTEMPTS.exists() and ATTEMPTS.stat().st_size > before:
        pytest.fail(
            f"it tried to connect to another machine: {ATTEMPTS.read_text(encoding='utf-8')[before:]}", pytrace=False
        )


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
