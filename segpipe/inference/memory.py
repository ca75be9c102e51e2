"""What a case will hold in memory, computed before its first window, and where its logits are added up so that it fits."""

import logging
import tempfile
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from segpipe.execution.memory import free_bytes
from segpipe.inference.sliding import Windows

logger = logging.getLogger(__name__)

_ON_DISK = Path("/var/tmp")
"""Where temporary files lie on a disk; /tmp is often memory itself."""
_USABLE = 0.7
"""Share of the free memory that sums may take; the rest is for the windows in work."""


@dataclass(frozen=True)
class Sums:
    """Where logits are added up."""

    where: str
    """A device, or "file"."""
    dtype: torch.dtype
    needed_bytes: int

    def allocate(self, shape: tuple[int, ...]) -> Tensor:
        """Return zeros of a shape."""
        if self.where != "file":
            return torch.zeros(shape, dtype=self.dtype, device=self.where)
        # The file has no name: it goes with the process, however that ends.
        with tempfile.TemporaryFile(dir=_ON_DISK if _ON_DISK.is_dir() else None) as file:
            mapped = np.memmap(file, dtype=np.float16, mode="w+", shape=shape)
        return torch.from_numpy(mapped)


def sums_bytes(windows: Windows, n_outputs: int, batch: int, dtype: torch.dtype) -> int:
    """Bytes of the sums of a row of windows, with their weights and the planes that are handed on."""
    plane = prod(windows.padded[1:])
    height = windows.height(batch)
    return plane * height * (n_outputs * dtype.itemsize + 4)


def choose_sums(
    windows: Windows, n_outputs: int, batch: int, device: torch.device, *, taken: int = 0, free: int | None = None
) -> Sums:
    """Choose where logits are added up: in single precision where it is free, on the device before the host, else in half, else in a file.

    Parameters
    ----------
    windows : Windows
    n_outputs : int
    batch : int
        Windows computed together.
    device : torch.device
    taken : int
        Bytes that the image will take there first.
    free : int, optional
        Bytes of the host that may be taken; measured unless given.
    """
    free = free_bytes() if free is None else free
    places = [(torch.device("cpu"), free)]
    if device.type == "cuda":
        # What torch keeps of earlier cases it will use again.
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        places.insert(0, (device, torch.cuda.mem_get_info(device)[0] + kept))
    for place, there in places:
        for dtype in (torch.float32, torch.float16):
            needed = sums_bytes(windows, n_outputs, batch, dtype)
            if needed <= (there - taken) * _USABLE:
                return Sums(str(place), dtype, needed)
    needed = sums_bytes(windows, n_outputs, batch, torch.float16)
    logger.warning(
        "%d outputs over %d x %d x %d voxels need %.1f GB, and %.1f GB are free: they are added up in a temporary file, which is slower",
        n_outputs, *windows.padded, needed / 1e9, free / 1e9,
    )  # fmt: skip
    return Sums("file", torch.float16, needed)
