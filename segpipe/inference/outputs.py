"""Files beside a segmentation: probabilities and uncertainty, filled plane by plane, and whole or not there."""

import zipfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from segpipe.core.whole import becomes, partial_of, take_room, whole
from segpipe.dataset.load import LoadedImage
from segpipe.inference.inputs import InputCase
from segpipe.inference.stage import entropy_of
from segpipe.io.formats import map_written_like, stem_of
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
        self.partial = partial_of(probabilities_file(output).with_suffix(".npy"))
        self.uncertainty = np.zeros(stored, dtype=np.float32) if uncertainty else None
        self.probabilities = None
        if probabilities:
            output.parent.mkdir(parents=True, exist_ok=True)
            shape = (plan.labels.n_outputs, *stored)
            self.probabilities = _reserved(self.partial, shape)
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

    @contextmanager
    def written(self, source: Path) -> Iterator[dict[Path, Path]]:
        """Write hidden files, on the grid of the image in ``source``; they are given by the names that they take when the block ends."""
        made: dict[Path, Path] = {}
        with ExitStack() as places:
            if self.probabilities is not None:
                self.probabilities.flush()
                target = probabilities_file(self.output)
                packed = made[target] = places.enter_context(whole(target))
                with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
                    archive.write(self.partial, "probabilities.npy")
                self.discard()
            if self.uncertainty is not None:
                target = uncertainty_file(self.output)
                made[target] = places.enter_context(map_written_like(source, target, self.uncertainty))
            yield made

    def discard(self) -> None:
        """Remove what is not finished."""
        self.probabilities = None
        self.partial.unlink(missing_ok=True)

    def _in_plan_order(self, stored: np.ndarray) -> np.ndarray:
        """A view of an array on the file's axes, with the plan's."""
        canonical = self.image.orientation.apply(stored)
        lead = stored.ndim - 3
        return canonical.transpose(*range(lead), *(lead + a for a in self.plan.transpose_forward))


def _reserved(file: Path, shape: tuple[int, ...]) -> np.memmap:
    """Return a new array of zeros (float16) in a file whose room on the disk is taken.

    Raises
    ------
    OSError
        If the disk is full. Without room of its own, the first write into the map would kill the process.
    """
    try:
        np.lib.format.open_memmap(file, mode="w+", dtype=np.float16, shape=shape)
        with file.open("r+b") as opened:
            take_room(opened, file.stat().st_size)
        return np.lib.format.open_memmap(file, mode="r+")
    except OSError as error:
        file.unlink(missing_ok=True)
        raise type(error)(error.errno, error.strerror, str(file.parent)) from error


def left_by_killed(cases: list[InputCase]) -> dict[str, list[Path]]:
    """What killed processes left in the folders of some outputs, by the name that it was to become."""
    found: dict[str, list[Path]] = {}
    for folder in {c.output.parent for c in cases}:
        for file in folder.glob(".*"):
            if name := becomes(file):
                found.setdefault(name, []).append(file)
    return found


def beside(output: Path) -> tuple[str, ...]:
    """Names of all files that may be written beside a segmentation, finished or not."""
    extras = Save(probabilities=True, uncertainty=True).files(output)
    return (*(file.name for file in extras), f"{stem_of(output)}.npy")
