"""The forward pass that is trained, and whether ``torch.compile`` pays for it: tried and measured here, before training begins."""

import logging
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from segpipe.execution.device import Runtime
from segpipe.networks.measure import step_seconds
from segpipe.networks.segmenter import Segmenter

logger = logging.getLogger(__name__)

Forward = Callable[[Tensor], list[Tensor]]

WORTH_TRYING_S = 1200.0
"""The trial takes a minute or two, and gains up to a third (docs/experiments.md): less training than this hardly wins that back."""
GAIN = 0.95
"""Share of the eager time from which the compiled step is kept; less of a gain may be noise."""


class Supervised(nn.Module):
    """The network as it is trained: forward gives the logits of every head that enters the loss."""

    def __init__(self, network: Segmenter) -> None:
        super().__init__()
        self.network = network
        self.compiled: Forward | None = None
        """Kept here: a network that holds its own forward pass would stay in memory until Python's garbage collector runs."""

    def forward(self, x: Tensor) -> list[Tensor]:
        """Logits, full resolution first."""
        return self.network.supervised(x) if self.compiled is None else self.compiled(x)


def compiled_if_faster(
    network: Segmenter, images: Callable[[], Tensor], runtime: Runtime, remaining_s: Callable[[float], float]
) -> tuple[Forward | None, str]:
    """Return the compiled forward pass where it trains faster here than the eager one, else None; and why.

    Parameters
    ----------
    network : Segmenter
        Whose gradients are thrown away after the trial.
    images : callable
        Reads a batch; called where there is a trial.
    runtime : Runtime
    remaining_s : callable
        Forecast of the training from the seconds of a step.
    """
    if remaining_s(float("inf")) < WORTH_TRYING_S:
        # Asked for in minutes: known without measuring.
        return None, _too_short(remaining_s(float("inf")))
    held = [(b, b.clone()) for b in network.buffers()]
    with torch.random.fork_rng(devices=[]):
        chosen = _tried(network, images(), runtime, remaining_s)
    # What batch normalisation saw in the trial is no part of the training.
    for buffer, before in held:
        buffer.copy_(before)
    return chosen


def _tried(
    network: Segmenter, images: Tensor, runtime: Runtime, remaining_s: Callable[[float], float]
) -> tuple[Forward | None, str]:
    eager = network.supervised
    try:
        plain = step_seconds(network, images, runtime, forward=eager)
        left = remaining_s(plain)
        if left < WORTH_TRYING_S:
            return None, _too_short(left)
        # For patches of one size; a graph that cannot be compiled whole raises here rather than later.
        compiled: Forward = torch.compile(eager, dynamic=False)
        start = time.perf_counter()
        step_seconds(network, images, runtime, forward=compiled, repeats=1)
        took = time.perf_counter() - start
        fast = step_seconds(network, images, runtime, forward=compiled)
    except Exception as error:  # noqa: BLE001 - the compiler fails in many ways on machines without a toolchain
        first = str(error).strip().splitlines()
        return None, f"eager: compiling failed ({type(error).__name__}: {first[0] if first else 'no message'})"
    finally:
        network.zero_grad(set_to_none=True)
    gain = f"a step takes {fast:.3f} s compiled, {plain:.3f} s eager; compiled in {took:.0f} s"
    if fast > GAIN * plain or (plain - fast) / plain * left < took:
        return None, f"eager: {gain}"
    return compiled, f"compiled: {gain}"


def _too_short(left_s: float) -> str:
    return f"eager: about {left_s / 60:.0f} min of training are too short to win back a compilation"
