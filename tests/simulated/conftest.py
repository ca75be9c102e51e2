"""Fixtures: the device, and planned datasets."""

import pytest
import torch

from tests.simulated.stand_ins import simulated_device
from tests.simulated.work import KINDS, RealGPU, make_place

HAS_GPU = torch.cuda.is_available()


@pytest.fixture(autouse=True)
def not_deterministic():
    """Leave torch as it was: it is asked for deterministic algorithms by the process."""
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def gpu():
    """A real GPU where there is one, else a simulated one."""
    if HAS_GPU:
        yield RealGPU()
    else:
        with simulated_device() as device:
            yield device


@pytest.fixture
def simulated():
    """A function that opens a simulated device; tests that need what only a simulation can do are left out on a real GPU."""
    if HAS_GPU:
        pytest.skip("a real GPU is here: it cannot be told what to be")
    return simulated_device


@pytest.fixture(scope="session")
def places(tmp_path_factory):
    """A function: a planned dataset with prepared arrays and a model, of a kind of labels."""
    made = {}

    def of(kind="plain"):
        assert kind in KINDS
        if kind not in made:
            made[kind] = make_place(tmp_path_factory.mktemp(kind), kind)
        return made[kind]

    return of
