"""What torch keeps for the whole process: set while a context lasts, and put back."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch


@contextmanager
def training_state(device: torch.device, *, deterministic: bool) -> Iterator[None]:
    """Let torch compute as a training needs it; afterwards all is as it was, random numbers too.

    Parameters
    ----------
    device : torch.device
        Device of the training. It becomes the current one, where it has a number.
    deterministic : bool
        Ask torch for algorithms that give the same bytes twice, else for the fastest convolutions.
    """
    numbered = device.type == "cuda" and device.index is not None
    with (
        random_state_kept(),
        _algorithms(deterministic=deterministic),
        fastest_convolutions(wanted=not deterministic),
        torch.cuda.device(device) if numbered else nullcontext(),
    ):
        yield


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Put torch's random numbers back, on the CPU and on every GPU."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        yield


@contextmanager
def fastest_convolutions(*, wanted: bool = True) -> Iterator[None]:
    """Let cuDNN measure which of its convolutions is the fastest, or not, while the context lasts."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = wanted
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


@contextmanager
def cpu_threads(n: int) -> Iterator[None]:
    """Let torch compute with so many threads while the context lasts."""
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _algorithms(*, deterministic: bool) -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    # Setting it loads torch's compiler, which takes a second and a half.
    changed = deterministic != before or (deterministic and warn_only)
    if changed:
        torch.use_deterministic_algorithms(deterministic)
    try:
        yield
    finally:
        if changed:
            torch.use_deterministic_algorithms(before, warn_only=warn_only)
