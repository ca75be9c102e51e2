"""Files beside a segmentation: probabilities and uncertainty, filled plane by plane, and whole or not there."""

import os
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from segpipe.dataset.load import LoadedImage
from segpipe.inference.inputs import InputCase
from segpipe.inference.stage import entropy_of
from segpipe.io.formats import stem_of, write_map_like
from segpipe.planning.schema import Plan
from segpipe.preprocessing.prepare import Placement


def probabilities_file(output: Path) -> Path:
    """Where the probabilities of a segmentation go: nnU-Net's name for them."""
    return output.with_name(f"{stem_of(output)}.npz")


def uncertainty_file(output: Path) -> Path:
    """Where the uncertainty of a segmentation goes."""
    return output.with_name(f"{stem_of(output)}_uncertainty.nii.gz")


@dataclass(frozen=True)
class Save:
    """What is written beside the segmentations."""

    probabilities: bool = False
    uncertainty: bool = False

    def files(self, output: Path) -> tuple[Path, ...]:
        """Files of one segmentation."""
        wanted = ((self.probabilities, probabilities_file), (self.uncertainty, uncertainty_file))
        return tuple(file(output) for asked, file in wanted if asked)


class Extras:
    """Takes probabilities plane by plane and writes what was asked for, on the image's own axes."""

    def __init__(self, image: LoadedImage, plan: Plan, output: Path, *, probabilities: bool, uncertainty: bool) -> None:
        self.image, self.plan, self.output = image, plan, output
        self.regions = plan.labels.regions
        stored = image.stored_grid.shape
        self.partial = output.with_name(f".{os.getpid()}.partial.{stem_of(output)}.npy")
        self.uncertainty = np.zeros(stored, dtype=np.float32) if uncertainty else None
        self.probabilities = None
        if probabilities:
            output.parent.mkdir(parents=True, exist_ok=True)
            shape = (plan.labels.n_outputs, *stored)
            self.probabilities = np.lib.format.open_memmap(self.partial, mode="w+", dtype=np.float16, shape=shape)
            if not self.regions:
                # Outside the box that was computed is background.
                self.probabilities[0] = 1

    def add(self, placement: Placement, number: int, probabilities: Tensor) -> None:
        """Take the probabilities (K, Y, X) of a plane of the crop."""
        z, y, x = placement.box
        at = (Ellipsis, z.start + number, y, x)
        if self.probabilities is not None:
            self._in_plan_order(self.probabilities)[at] = probabilities.cpu().numpy()
        if self.uncertainty is not None:
            self._in_plan_order(self.uncertainty)[at] = entropy_of(probabilities, regions=self.regions).cpu().numpy()

    def write(self, source: Path) -> tuple[Path, ...]:
        """Write the files, on the grid of the image in ``source``; returns their paths."""
        written = []
        if self.probabilities is not None:
            self.probabilities.flush()
            packed = self.partial.with_suffix(".npz")
            with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
                archive.write(self.partial, "probabilities.npy")
            packed.replace(probabilities_file(self.output))
            written.append(probabilities_file(self.output))
            self.discard()
        if self.uncertainty is not None:
            write_map_like(source, uncertainty_file(self.output), self.uncertainty)
            written.append(uncertainty_file(self.output))
        return tuple(written)

    def discard(self) -> None:
        """Remove what is not finished."""
        self.probabilities = None
        self.partial.unlink(missing_ok=True)
        self.partial.with_suffix(".npz").unlink(missing_ok=True)

    def _in_plan_order(self, stored: np.ndarray) -> np.ndarray:
        """A view of an array on the file's axes, with the plan's."""
        canonical = self.image.orientation.apply(stored)
        lead = stored.ndim - 3
        return canonical.transpose(*range(lead), *(lead + a for a in self.plan.transpose_forward))


def left_by_killed(cases: list[InputCase]) -> dict[str, list[Path]]:
    """What killed processes left in the folders of some outputs, by the name that it was to become."""
    found: dict[str, list[Path]] = {}
    for folder in {c.output.parent for c in cases}:
        for file in folder.glob(".*.partial.*"):
            found.setdefault(file.name.partition(".partial.")[2], []).append(file)
    return found


def beside(output: Path) -> tuple[str, ...]:
    """Names of all files that may be written beside a segmentation, finished or not."""
    extras = Save(probabilities=True, uncertainty=True).files(output)
    return (*(file.name for file in extras), f"{stem_of(output)}.npy")
