"""Prepared cases, and where their arrays live while they are trained on: on the device, in memory, or on disk."""

from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from segpipe.core.labels import Labels
from segpipe.errors import ArtefactError, TrainingError
from segpipe.execution.memory import free_bytes
from segpipe.training.sampling import CaseExtent, read_box

Place = Literal["device", "memory", "disk"]
_NO_SHARE = 1e-6

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
    soft: "SoftArrays | None" = None
    """Probabilities that another model gave."""
    labelled: bool = True
    """Whether the segmentation is somebody's; else it only says where structures may be."""

    @property
    def extent(self) -> CaseExtent:
        """What the sampler needs."""
        z, y, x = self.segmentation.shape
        return CaseExtent((z, y, x), np.asarray(self.foreground))

    @property
    def n_bytes(self) -> int:
        """Memory of the arrays."""
        maps = 1 if self.previous is None else 2
        soft = 0 if self.soft is None else self.soft.n_bytes
        return int(prod(self.image.shape) * 4 + prod(self.segmentation.shape) * 2 * maps) + soft


@dataclass(frozen=True)
class SoftArrays:
    """The largest probabilities of each voxel."""

    outputs: Any
    """(k, Z, Y, X) which outputs of the network they are of."""
    shares: Any
    """(k, Z, Y, X) float16."""
    n_outputs: int
    regions: bool = False
    """Each output is decided by itself; else they sum to 1, and what is left out is shared in proportion."""

    @property
    def n_bytes(self) -> int:
        """Memory of the arrays."""
        return int(prod(self.shares.shape) * (2 + self.outputs.dtype.itemsize))

    def read(self, start: tuple[int, ...], size: tuple[int, ...]) -> Tensor:
        """Probabilities (K, *size) of a box, float32; 0 outside the image."""
        shares = read_box(self.shares, start, size, 0).float()
        outputs = read_box(self.outputs, start, size, 0).long()
        dense = shares.new_zeros(self.n_outputs, *size).scatter_add_(0, outputs, shares)
        return dense if self.regions else dense / dense.sum(0).clamp_min(_NO_SHARE)


def open_cases(
    folder: Path,
    case_ids: tuple[str, ...],
    previous: Path | None = None,
    *,
    soft: Path | None = None,
    labels: Labels | None = None,
    labelled: bool = True,
) -> list[TrainingCase]:
    """Open the prepared cases of a folder, nothing is read yet.

    Parameters
    ----------
    folder : Path
    case_ids : tuple of str
    previous : Path, optional
        Folder of what a cascade's first stage found.
    soft : Path, optional
        Folder of another model's probabilities.
    labels : Labels, optional
        What these are probabilities of.
    labelled : bool
        Whether the segmentations are somebody's.

    Raises
    ------
    TrainingError
        If a case's arrays are gone or damaged.
    """
    # Imported here so that training on arrays needs no file-format library.
    from segpipe.core.artefact import sha256_on_record
    from segpipe.core.workspace import PreparedFiles, SoftLabelFiles
    from segpipe.io.arrays import open_array

    def opened_whole(record: Path, *files: Path) -> list[Any]:
        sha256 = sha256_on_record(record)
        return [open_array(file, sha256.get(file.name)) for file in files]

    opened = []
    for case in case_ids:
        files = PreparedFiles(folder / case)
        try:
            found = None
            if previous is not None:
                before = PreparedFiles(previous / case)
                [found] = opened_whole(before.record, before.previous)
            image, segmentation, index = opened_whole(files.record, files.image, files.segmentation, files.foreground)
            probabilities = None
            if soft is not None and labels is not None:
                kept = SoftLabelFiles(soft / case)
                outputs, shares = opened_whole(kept.record, kept.outputs, kept.shares)
                probabilities = SoftArrays(outputs, shares, labels.n_outputs, labels.regions)
            foreground = index[...]
            opened.append(TrainingCase(case, image, segmentation, foreground, found, probabilities, labelled))
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
            soft = case.soft and replace(
                case.soft, outputs=brought(case.soft.outputs), shares=brought(case.soft.shares)
            )
        except (ArtefactError, OSError, RuntimeError, ValueError) as error:
            raise TrainingError(unreadable(case.id, "the workspace", error)) from error
        made.append(replace(case, image=arrays[0], segmentation=arrays[1], previous=arrays[2], soft=soft))
    return made
