"""What computes a network: tiles in, logits out. Which engine, and in which precision."""

import logging
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, Protocol

import torch
from torch import Tensor

from segpipe.errors import DeviceError, ModelError
from segpipe.modelfile import Weights
from segpipe.networks.build import build_network, fast_memory_format, to_device
from segpipe.networks.segmenter import Segmenter
from segpipe.planning.schema import Configuration, Plan
from segpipe.runtime import Runtime, cpu_flags

logger = logging.getLogger(__name__)

EngineName = Literal["auto", "torch", "openvino"]
Precision = Literal["auto", "float32", "float16", "bfloat16"]

_BATCH_VOXELS = {"cpu": 2**18, "cuda": 2**23}
"""Voxels of a batch of tiles: smaller ones do not fill the device. On a CPU larger ones gain nothing (docs/experiments.md)."""


_CPU_FLAGS = {
    "float16": frozenset({"amx_fp16", "avx512_fp16"}),
    "bfloat16": frozenset({"amx_bf16", "avx512_bf16"}),
}
"""Instructions of processors that multiply in a precision; one of them is enough."""


class Engine(Protocol):
    """A network with its weights, ready to compute."""

    n_inputs: int
    """Channels of a tile."""
    batch: int
    """Tiles that are best computed together; as many or fewer are given."""
    precision: str

    def __call__(self, tiles: Tensor) -> Tensor:
        """Logits (N, K, *patch) of tiles (N, C, *patch)."""
        ...


class TorchEngine:
    """A network computed by PyTorch."""

    def __init__(self, network: Segmenter, n_inputs: int, batch: int, runtime: Runtime) -> None:
        self.network, self.n_inputs, self.batch, self.runtime = network, n_inputs, batch, runtime
        self.precision = precision_name(runtime)
        self.memory_format = fast_memory_format(network.dims)

    def __call__(self, tiles: Tensor) -> Tensor:
        """See :class:`Engine`."""
        if len(tiles) > self.batch:
            return torch.cat([self(some) for some in torch.split(tiles, self.batch)])
        x = tiles.to(self.runtime.device).contiguous(memory_format=self.memory_format)
        try:
            with self.runtime.precision():
                logits: Tensor = self.network(x)
                return logits
        except torch.OutOfMemoryError:
            if len(tiles) == 1:
                raise
        # Outside of the handler: what the failed pass held is free only when its error is gone.
        self.batch = len(tiles) // 2
        logger.warning("the device's memory holds no batch of %d tiles; going on with %d", len(tiles), self.batch)
        torch.cuda.empty_cache()
        return self(tiles)


def tiles_at_once(patch: tuple[int, ...], device: torch.device) -> int:
    """Tiles of a patch that are best computed together on a device."""
    voxels = 1
    for n in patch:
        voxels *= n
    return max(_BATCH_VOXELS[device.type] // voxels, 1)


def make_network(plan: Plan, configuration: Configuration, weights: Weights) -> tuple[Segmenter, int]:
    """Build the planned network with trained weights; returns it with its number of input channels.

    Raises
    ------
    ModelError
        If the weights are of another network.
    """
    n_inputs = plan.n_inputs(configuration)
    # A planned U-Net needs no first weights, and takes the trained ones as they are: no copy.
    planned = bool(configuration.network.encoder_blocks)
    with torch.device("meta") if planned else nullcontext():
        network = build_network(configuration.network, n_inputs, plan.labels.n_outputs)
    try:
        network.load_state_dict(weights, assign=planned)
    except RuntimeError as error:
        package = configuration.network.package
        made_with = "" if package is None else f" (of {package} when it was trained)"
        raise ModelError(f"the weights do not fit the planned network{made_with}: {error}") from error
    return network.eval().requires_grad_(requires_grad=False), n_inputs


def make_engine(
    plan: Plan,
    configuration: Configuration,
    weights: Weights,
    runtime: Runtime,
    *,
    name: EngineName = "auto",
    cache: Path | None = None,
) -> Engine:
    """Make the engine of one fold.

    Parameters
    ----------
    plan : Plan
    configuration : Configuration
    weights : dict of Tensor
    runtime : Runtime
        Device and precision; see :func:`inference_runtime`.
    name : "auto", "torch" or "openvino"
        ``auto`` is OpenVINO on a CPU where it is installed and can compute the network, else PyTorch.
    cache : Path, optional
        Folder for compiled networks.

    Raises
    ------
    ModelError
        If the weights are of another network, or OpenVINO was asked for and cannot compute it.
    DeviceError
        If OpenVINO was asked for and is not installed, or not for this device.
    """
    if name == "openvino" and (runtime.device.type != "cpu" or not has_openvino()):
        found = (
            f"the device is {runtime.device}" if has_openvino() else "it is not installed: pip install 'segpipe[cpu]'"
        )
        raise DeviceError(
            f"--engine openvino: computes on CPUs where it is installed, and {found}; or use --engine torch"
        )
    if name == "torch" or runtime.device.type != "cpu" or not has_openvino():
        return torch_engine(plan, configuration, weights, runtime)
    from segpipe.inference.openvino_engine import openvino_engine

    try:
        # Its batches are filled up, and in 3D one tile is as fast as several (docs/experiments.md).
        batch = 1 if configuration.dims == 3 else tiles_at_once(configuration.patch_size, runtime.device)
        return openvino_engine(plan, configuration, weights, runtime, batch=batch, cache=cache)
    except ModelError:
        raise
    except Exception as error:
        if name == "openvino":
            raise ModelError(
                f"--engine openvino: cannot compute {configuration.network.architecture} ({_first_line(error)}); use --engine torch"
            ) from error
        logger.warning(
            "OpenVINO cannot compute %s (%s); PyTorch does", configuration.network.architecture, _first_line(error)
        )
        # PyTorch has no fast float16 on CPUs.
        slow = runtime.autocast == torch.float16
        return torch_engine(plan, configuration, weights, Runtime(runtime.device, None) if slow else runtime)


def torch_engine(plan: Plan, configuration: Configuration, weights: Weights, runtime: Runtime) -> TorchEngine:
    """Make a fold's network, on its device, computed by PyTorch."""
    network, n_inputs = make_network(plan, configuration, weights)
    to_device(network, runtime.device)
    return TorchEngine(network, n_inputs, tiles_at_once(configuration.patch_size, runtime.device), runtime)


def inference_runtime(runtime: Runtime, precision: Precision = "auto", engine: EngineName = "auto") -> Runtime:
    """Return the runtime with the precision for prediction.

    ``auto`` is float16 on a GPU with tensor cores, as in nnU-Net. On a CPU it is float16 where the processor multiplies it natively and
    OpenVINO computes, else float32: bfloat16 moves up to four of a thousand voxels of a label (docs/experiments.md), so it has to be
    asked for.

    Raises
    ------
    DeviceError
        If the processor does not compute in the precision that was asked for.
    """
    device = runtime.device
    if precision == "auto":
        fast = runtime.autocast is not None if device.type == "cuda" else _float16_on_cpu(engine)
        return Runtime(device, torch.float16 if fast else None)
    needed = _CPU_FLAGS.get(precision, frozenset())
    if device.type == "cpu" and needed and not cpu_flags() & needed:
        raise DeviceError(
            f"--precision {precision}: this processor has no instructions for it ({', '.join(sorted(needed))}), and would take several "
            "times longer than in float32"
        )
    return Runtime(device, None if precision == "float32" else getattr(torch, precision))


def _float16_on_cpu(engine: EngineName) -> bool:
    return engine != "torch" and has_openvino() and bool(cpu_flags() & _CPU_FLAGS["float16"])


def default_engine(runtime: Runtime) -> str:
    """Engine and precision that prediction takes on a device unless told otherwise, in words."""
    chosen = inference_runtime(runtime)
    name = "OpenVINO" if chosen.device.type == "cpu" and has_openvino() else "PyTorch"
    hint = "" if chosen.device.type != "cpu" or has_openvino() else "; OpenVINO is faster: pip install 'segpipe[cpu]'"
    return f"{name} in {precision_name(chosen)}{hint}"


def precision_name(runtime: Runtime) -> str:
    """Number type that a runtime computes in."""
    return "float32" if runtime.autocast is None else str(runtime.autocast).removeprefix("torch.")


def network_cache() -> Path | None:
    """Folder for compiled networks: the user's own, as others might put something else there; None for a user without one."""
    try:
        return Path.home() / ".cache" / "segpipe" / "networks"
    except RuntimeError:
        return None


def has_openvino() -> bool:
    """Whether OpenVINO is installed."""
    return find_spec("openvino") is not None


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
