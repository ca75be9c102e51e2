"""Prepared cases, and where their arrays live while they are trained on: on the device, in memory, or on disk."""

from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from segpipe.errors import ArtefactError, TrainingError
from segpipe.jobs import free_bytes
from segpipe.training.sampling import CaseExtent

Place = Literal["device", "memory", "disk"]

# Of what is free: the rest is for batches on their way and for other programs.
_MEMORY_SHARE, _DEVICE_SHARE = 0.4, 0.9


@dataclass(frozen=True)
class TrainingCase:
    """Arrays of one case: tensors, or anything that has shape and slices like numpy."""

    id: str
    image: Any
    """(C, Z, Y, X) float32."""
    segmentation: Any
    """(Z, Y, X) label indices, -1 outside."""
    foreground: Any
    """(N, 4) target, z, y, x."""
    previous: Any = None
    """(Z, Y, X) label indices that a cascade's first stage found."""

    @property
    def extent(self) -> CaseExtent:
        """What the sampler needs."""
        z, y, x = self.segmentation.shape
        return CaseExtent((z, y, x), np.asarray(self.foreground))

    @property
    def n_bytes(self) -> int:
        """Memory of the arrays."""
        maps = 1 if self.previous is None else 2
        return int(prod(self.image.shape) * 4 + prod(self.segmentation.shape) * 2 * maps)


def open_cases(folder: Path, case_ids: tuple[str, ...], previous: Path | None = None) -> list[TrainingCase]:
    """Open the prepared cases of a folder, nothing is read yet; ``previous`` holds the arrays of a cascade's first stage.

    Raises
    ------
    TrainingError
        If a case's arrays are gone or damaged.
    """
    # Imported here so that training on arrays needs no file-format library.
    from segpipe.io.arrays import open_array, read_array
    from segpipe.workspace import PreparedFiles

    opened = []
    for case in case_ids:
        files = PreparedFiles(folder / case)
        try:
            found = None if previous is None else open_array(PreparedFiles(previous / case).previous)
            image, segmentation = open_array(files.image), open_array(files.segmentation)
            opened.append(TrainingCase(case, image, segmentation, read_array(files.foreground), found))
        except (ArtefactError, OSError, RuntimeError, ValueError) as error:
            raise TrainingError(unreadable(case, folder, error)) from error
    return opened


def unreadable(case: str, folder: Path | str, error: Exception) -> str:
    """Say that a prepared case cannot be read."""
    return (
        f"case {case}: its prepared arrays in {folder} cannot be read ({type(error).__name__}: {error}); "
        "run `segpipe preprocess` again, then go on with `segpipe train --resume`"
    )


def choose_place(cases: list[TrainingCase], device: torch.device, *, reserved_bytes: float, sharers: int) -> Place:
    """Choose the fastest place that holds all cases.

    Parameters
    ----------
    cases : list of TrainingCase
    device : torch.device
    reserved_bytes : float
        Device memory that the training itself needs.
    sharers : int
        Processes on this machine that each hold the cases.
    """
    needed = sum(c.n_bytes for c in cases)
    if device.type == "cuda" and needed + reserved_bytes < _DEVICE_SHARE * torch.cuda.mem_get_info(device)[0]:
        return "device"
    return "memory" if needed * sharers < _MEMORY_SHARE * free_bytes() else "disk"


def placed(cases: list[TrainingCase], place: Place, device: torch.device) -> list[TrainingCase]:
    """Bring the cases' arrays to a place."""
    if place == "disk":
        return cases

    def brought(array: Any) -> Any:
        return None if array is None else torch.from_numpy(array[...]).to(device if place == "device" else "cpu")

    made = []
    for case in cases:
        try:
            arrays = brought(case.image), brought(case.segmentation), brought(case.previous)
        except (ArtefactError, OSError, RuntimeError, ValueError) as error:
            raise TrainingError(unreadable(case.id, "the workspace", error)) from error
        made.append(replace(case, image=arrays[0], segmentation=arrays[1], previous=arrays[2]))
    return made
