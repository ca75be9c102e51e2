"""The machine: device, precision, threads, determinism."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from segpipe.core.text import did_you_mean
from segpipe.errors import DeviceError
from segpipe.execution.memory import free_bytes


@dataclass(frozen=True)
class Runtime:
    """Where and how a network runs."""

    device: torch.device
    autocast: torch.dtype | None
    """Reduced precision that the device computes natively, or None for float32."""
    deterministic: bool = False
    """Whether a training is to give the same bytes twice; :func:`segpipe.execution.torch_state.training_state` asks torch for it."""

    def describe(self) -> str:
        """Device and precision in words."""
        name = (
            torch.cuda.get_device_name(self.device)
            if self.device.type == "cuda"
            else f"CPU, {torch.get_num_threads()} threads"
        )
        return f"{name}, {'float32' if self.autocast is None else str(self.autocast).removeprefix('torch.')}"

    @property
    def needs_scaling(self) -> bool:
        """Whether gradients must be scaled so that they do not vanish: float16 has a small range."""
        return self.autocast == torch.float16

    def wait(self) -> None:
        """Wait until the device has computed everything."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def precision(self) -> torch.autocast:
        """Context in which the network's forward pass runs."""
        return torch.autocast(
            self.device.type, dtype=self.autocast or torch.bfloat16, enabled=self.autocast is not None
        )


def choose_runtime(device: str = "auto", *, deterministic: bool = False) -> Runtime:
    """Pick the device and the precision it is fast in. Nothing is set in torch.

    Parameters
    ----------
    device : str
        ``auto`` (a GPU where there is one), ``cpu``, ``cuda`` or ``cuda:N``.
    deterministic : bool
        A training is to give the same bytes twice.

    Raises
    ------
    DeviceError
        If the device is not there.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        near = did_you_mean(device, ("auto", "cpu", "cuda"))
        raise DeviceError(f"--device {device}: not a device name{near}; expected auto, cpu, cuda or cuda:N") from error
    if chosen.type not in ("cpu", "cuda"):
        raise DeviceError(f"--device {device}: segpipe runs on cpu and cuda; expected auto, cpu, cuda or cuda:N")
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise DeviceError(
            f"--device {device}: {torch.cuda.device_count()} CUDA device(s) found; use --device cpu or auto"
        )
    return Runtime(chosen, _fast_precision(chosen), deterministic)


def sent(values: ArrayLike | Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """Copy a few numbers from the host to a device; a GPU goes on computing meanwhile.

    Parameters
    ----------
    values : array_like or Tensor
        On the host.
    device : torch.device
    dtype : torch.dtype, optional
        Number type of the result; that of the values unless given.

    Returns
    -------
    Tensor
        On the device.
    """
    made = torch.as_tensor(values, dtype=dtype)
    # A copy from ordinary (pageable) memory makes the host wait for all that the device was given before.
    return made.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else made.to(device)


def arriving(values: Tensor) -> Callable[[], Any]:
    """Begin to bring numbers to the host.

    Parameters
    ----------
    values : Tensor
        Anywhere.

    Returns
    -------
    callable
        Returns the numbers (nested lists, as ``values.tolist()``); waits for them, and for nothing that the device was given later.
    """
    if values.device.type != "cuda":
        return values.tolist
    held = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    held.copy_(values, non_blocking=True)
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    # The stream is one of the values' own device: the current device of this thread may be another.
    event.record(torch.cuda.current_stream(values.device))

    def arrived() -> Any:
        event.synchronize()
        return held.tolist()

    return arrived


def require_devices(device: torch.device, n: int) -> None:
    """Raise unless so many devices of a kind are there; processes on the CPU share its cores.

    Raises
    ------
    DeviceError
        If there are fewer GPUs.
    """
    if device.type == "cuda" and n > torch.cuda.device_count():
        raise DeviceError(f"--devices {n}: {torch.cuda.device_count()} CUDA device(s) found; use as many or fewer")
    if n > 1 and device.index is not None:
        raise DeviceError(f"--devices {n} with --device {device}: give --device {device.type} to train on several")


# The rest is for what other programs take meanwhile, and on a CPU for the prepared cases and the program itself.
_USABLE_SHARE = {"cuda": 0.9, "cpu": 0.5}


MIN_BUDGET_GB = 0.1


def free_gb(device: torch.device) -> float:
    """Memory of a device, in GB (1e9 bytes), that a training may plan with.

    Raises
    ------
    DeviceError
        If next to nothing is free.
    """
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else free_bytes()
    usable = round(free * _USABLE_SHARE[device.type] / 1e9, 1)
    if usable < MIN_BUDGET_GB:
        raise DeviceError(
            f"{device}: {free / 1e9:.2f} GB are free, too little to plan a training with; end what else runs there, or give --budget-gb"
        )
    return usable


def cpu_flags() -> frozenset[str]:
    """Instruction set flags of the processor (empty where the system does not list them)."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line.split(":", 1)[1] for line in lines if line.startswith("flags")), "").split())


def _fast_precision(device: torch.device) -> torch.dtype | None:
    # Without the instructions, bfloat16 on a CPU is many times slower than float32 (docs/experiments.md).
    if device.type == "cuda":
        # Tensor cores know bfloat16 from capability 8.0 (Ampere), float16 from 7.0 (Volta).
        capability = torch.cuda.get_device_capability(device)
        return torch.bfloat16 if capability >= (8, 0) else torch.float16 if capability >= (7, 0) else None
    return torch.bfloat16 if cpu_flags() & {"amx_bf16", "avx512_bf16"} else None
