"""Which engine computes a network, and in which precision."""

import logging
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import torch

from segpipe.errors import DeviceError, ModelError
from segpipe.execution.device import Runtime, cpu_flags
from segpipe.inference.engines.base import Engine, EngineName, Precision, precision_name
from segpipe.inference.engines.torch import tiles_at_once, torch_engine
from segpipe.models.file import Weights
from segpipe.planning.schema import Configuration, Plan

logger = logging.getLogger(__name__)


_CPU_FLAGS = {
    "float16": frozenset({"amx_fp16", "avx512_fp16"}),
    "bfloat16": frozenset({"amx_bf16", "avx512_bf16"}),
}
"""Instructions of processors that multiply in a precision; one of them is enough."""


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
    from segpipe.inference.engines.openvino import openvino_engine

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
        return torch_engine(plan, configuration, weights, replace(runtime, autocast=None) if slow else runtime)


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
    device = _numbered(runtime.device)
    if precision == "auto":
        fast = runtime.autocast is not None if device.type == "cuda" else _float16_on_cpu(engine)
        return replace(runtime, device=device, autocast=torch.float16 if fast else None)
    needed = _CPU_FLAGS.get(precision, frozenset())
    if device.type == "cpu" and needed and not cpu_flags() & needed:
        raise DeviceError(
            f"--precision {precision}: this processor has no instructions for it ({', '.join(sorted(needed))}), and would take several "
            "times longer than in float32"
        )
    return replace(runtime, device=device, autocast=None if precision == "float32" else getattr(torch, precision))


def _numbered(device: torch.device) -> torch.device:
    """The GPU by its number. Without one it is the current GPU of whichever thread asks, which may be another one later."""
    known = device.type != "cuda" or device.index is not None
    return device if known else torch.device("cuda", torch.cuda.current_device())


def _float16_on_cpu(engine: EngineName) -> bool:
    return engine != "torch" and has_openvino() and bool(cpu_flags() & _CPU_FLAGS["float16"])


def default_engine(runtime: Runtime) -> str:
    """Engine and precision that prediction takes on a device unless another is asked for, in words."""
    chosen = inference_runtime(runtime)
    name = "OpenVINO" if chosen.device.type == "cpu" and has_openvino() else "PyTorch"
    hint = "" if chosen.device.type != "cpu" or has_openvino() else "; OpenVINO is faster: pip install 'segpipe[cpu]'"
    return f"{name} in {precision_name(chosen)}{hint}"


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
