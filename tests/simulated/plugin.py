"""pytest plugin: the whole run has a simulated GPU, so that tests marked `gpu` run without a real one.

`pytest -p tests.simulated.plugin -m gpu tests/unit`
"""

from contextlib import ExitStack

import torch

from tests.simulated.stand_ins import simulated_device

_open = ExitStack()


def pytest_configure(config):
    if not torch.cuda.is_available():
        _open.enter_context(simulated_device(capability=(6, 0)))


def pytest_unconfigure(config):
    _open.close()
