"""What a network costs: parameters, work, memory and time of a training step.

Memory is counted on tensors without content (torch's fake tensors): every allocation and release of a real step, on no hardware and
within seconds. What kernels allocate inside themselves is not seen.
"""

import logging
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from segpipe.errors import NetworkError
from segpipe.execution.device import Runtime
from segpipe.execution.torch_state import training_state
from segpipe.networks.build import build_network, fast_memory_format, to_device
from segpipe.networks.segmenter import Segmenter
from segpipe.networks.spec import NetworkSpec

Patch = tuple[int, ...]


@dataclass(frozen=True)
class StepBytes:
    """Memory of a training step: ``fixed + batch * per_sample``."""

    fixed: int
    per_sample: int


def _mode() -> FakeTensorMode:
    # Tensors that a module holds besides its weights and buffers have content, and may.
    return FakeTensorMode(allow_non_fake_inputs=True)


def n_parameters(network: nn.Module) -> int:
    """Numbers that are trained or could be."""
    return sum(p.numel() for p in network.parameters())


def macs(network: Segmenter, n_channels: int, patch: Patch) -> int:
    """Multiply-adds of convolutions and matrix products in a forward pass over one patch."""
    mode = _mode()
    with _without_content(network, mode), mode, torch.no_grad(), _eval(network):
        counter = FlopCounterMode(display=False, custom_mapping=_ATTENTION)
        with counter:
            network(torch.empty(1, n_channels, *patch))
    return int(counter.get_total_flops()) // 2


@lru_cache(maxsize=256)
def _measured(network_json: str, patch: Patch, n_channels: int, n_outputs: int, activation_bytes: int) -> StepBytes:
    network = _built(NetworkSpec.model_validate_json(network_json), n_channels, n_outputs)
    two, three = (peak_bytes(network, n_channels, patch, batch, activation_bytes=activation_bytes) for batch in (2, 3))
    weights = 4 * n_parameters(network)
    # Weights and momentum besides the gradients, which the step itself allocates.
    return StepBytes(fixed=max(two - 2 * (three - two), weights) + 2 * weights, per_sample=three - two)


def peak_bytes(network: Segmenter, n_channels: int, patch: Patch, batch: int, *, activation_bytes: int = 4) -> int:
    """Most bytes that are alive at once in a forward and backward pass, weights not counted."""
    mode, live = _mode(), _Live()
    with _without_content(network, mode), mode, live:
        network.train()
        images = torch.empty(batch, n_channels, *patch).contiguous(memory_format=fast_memory_format(network.dims))
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=activation_bytes == 2):
            heads = network.supervised(images)
        _stand_in_loss(heads).backward()  # type: ignore[no-untyped-call]
        peak = live.peak
        network.zero_grad(set_to_none=True)
    return peak


class MemoryProbe:
    """Answers of built networks to a planner's questions; see ``segpipe.planning.design.Probe``."""

    def step_bytes(self, network: NetworkSpec, patch: Patch, channels: Any, activation_bytes: int) -> StepBytes:
        """Memory of a training step."""
        return _measured(network.model_dump_json(), patch, channels.inputs, channels.outputs, activation_bytes)

    def problem(self, network: NetworkSpec, patch: Patch, channels: Any) -> str | None:
        """Why the network cannot be trained on patches of this size; None where it can.

        Raises
        ------
        NetworkError
            If it cannot be built at all as it was asked for.
        """
        return _problem(network.model_dump_json(), patch, channels.inputs, channels.outputs)


@lru_cache(maxsize=256)
def _problem(network_json: str, patch: Patch, n_channels: int, n_outputs: int) -> str | None:
    spec = NetworkSpec.model_validate_json(network_json)
    try:
        network = _built(spec, n_channels, n_outputs)
    except NetworkError as error:
        # What its constructor refuses may be the size; an option that it does not have is no matter of size.
        if error.__cause__ is None or not spec.patch_size:
            raise
        return str(error)
    try:
        heads = heads_without_content(network, n_channels, patch)
    except DataDependentOutputException as error:
        raise NetworkError(
            f"network {spec.architecture}: its forward pass depends on the values of an image ({error}), and its memory is measured "
            "without any; write such a choice with torch.where, or by shapes"
        ) from error
    except Exception as error:  # noqa: BLE001 - networks refuse sizes by errors of every kind
        return f"{type(error).__name__}: {(str(error).strip().splitlines() or ['no message'])[0]}"
    expected = (2, n_outputs, *patch)
    if tuple(heads[0].shape) != expected:
        return f"gives {tuple(heads[0].shape)} for a patch of {patch}, expected {expected}"
    return None


def heads_without_content(network: Segmenter, n_channels: int, patch: Patch) -> list[Tensor]:
    """Return what a training pass over two images gives, as tensors that have a shape and no content."""
    mode = _mode()
    # It logs what a network raises, which is the answer here.
    with _unlogged("torch._subclasses.fake_tensor"), _without_content(network, mode), mode, torch.no_grad():
        return network.train().supervised(torch.empty(2, n_channels, *patch))


def step_seconds(
    network: Segmenter, images: Tensor, runtime: Runtime, *, forward: Any = None, repeats: int = 3
) -> float:
    """Fastest of some forward and backward passes; gradients are left as they come out.

    Parameters
    ----------
    network : Segmenter
    images : Tensor
        A batch, on the device.
    runtime : Runtime
    forward : callable, optional
        Images to heads; the network's own unless given.
    repeats : int
    """
    fastest, run = float("inf"), forward or network.supervised
    for _ in range(repeats):
        network.zero_grad(set_to_none=True)
        runtime.wait()
        start = time.perf_counter()
        with runtime.precision():
            heads = run(images)
        _stand_in_loss(heads).backward()  # type: ignore[no-untyped-call]
        runtime.wait()
        fastest = min(fastest, time.perf_counter() - start)
    return fastest


def seconds_of(
    spec: NetworkSpec, n_channels: int, n_outputs: int, patch: Patch, batch: int, runtime: Runtime, *, repeats: int = 2
) -> float:
    """Seconds of a training step of a network with fresh weights on this machine, the fastest of some."""
    with training_state(runtime.device, deterministic=runtime.deterministic):
        network = to_device(build_network(spec, n_channels, n_outputs), runtime.device).train()
        images = torch.randn(batch, n_channels, *patch, device=runtime.device)
        images = images.contiguous(memory_format=fast_memory_format(network.dims))
        step_seconds(network, images, runtime, repeats=1)
        return step_seconds(network, images, runtime, repeats=repeats)


@contextmanager
def _unlogged(name: str) -> Iterator[None]:
    """Drop what a logger is given while the context lasts. Its level stays: another thread may set it, and put it back, meanwhile."""

    def drop(_: logging.LogRecord) -> bool:
        return False

    logger = logging.getLogger(name)
    logger.addFilter(drop)
    try:
        yield
    finally:
        logger.removeFilter(drop)


def _built(spec: NetworkSpec, n_channels: int, n_outputs: int) -> Segmenter:
    """Build a network and leave torch's random state as it was: a plan is no part of training."""
    with torch.random.fork_rng(devices=[]):
        return build_network(spec, n_channels, n_outputs)


def _stand_in_loss(heads: list[Tensor]) -> Tensor:
    """Keeps what Dice and cross-entropy keep: logits in float32, as probabilities and as log-probabilities."""
    values = [(h.float().softmax(1).square().mean() - h.float().log_softmax(1).mean()) for h in heads]
    return torch.stack(values).sum()


class _Live(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of storages that are alive."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now, self.peak = 0, 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                self._saw(tensor.untyped_storage())
        return made

    def _saw(self, storage: torch.UntypedStorage) -> None:
        key, n = storage._cdata, storage.nbytes()
        if key in self.known:
            return
        self.known.add(key)
        self.now += n
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._gone, key, n)

    def _gone(self, key: int, n: int) -> None:
        self.known.discard(key)
        self.now -= n


class _without_content:  # noqa: N801 - a context
    """Let a network's weights be without content while the context lasts."""

    def __init__(self, network: nn.Module, mode: FakeTensorMode) -> None:
        self.network, self.mode = network, mode

    def __enter__(self) -> None:
        self.held: list[tuple[dict[str, Any], str, Any]] = []
        for module in self.network.modules():
            for holder in (module._parameters, module._buffers):
                for name, value in holder.items():
                    if value is not None:
                        self.held.append((holder, name, value))
        for holder, name, value in self.held:
            fake = self.mode.from_tensor(value.detach())
            trained = isinstance(value, nn.Parameter)
            holder[name] = nn.Parameter(fake, value.requires_grad) if trained else fake  # type: ignore[assignment]

    def __exit__(self, *_: object) -> None:
        for holder, name, value in self.held:
            holder[name] = value


class _eval:  # noqa: N801 - a context
    """Let a network infer while the context lasts."""

    def __init__(self, network: nn.Module) -> None:
        self.network, self.was = network, network.training

    def __enter__(self) -> None:
        self.network.eval()

    def __exit__(self, *_: object) -> None:
        self.network.train(self.was)


def _attention_flops(query: Any, key: Any, value: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    n, heads, length, inner = query
    return int(2 * n * heads * length * key[-2] * (inner + value[-1]))


# torch knows the work of attention kernels of GPUs only.
_ATTENTION = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops}
