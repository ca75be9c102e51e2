"""What is said of voxels around a structure against what is there, counted while a case is predicted.

Which voxels are counted is known when the last plane was seen, because the prediction has a say in it. Until then the planes lie in a
file, as half precision: memory holds one of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segpipe.core.artefact import Artefact
from segpipe.core.geometry import Box, bounding_box
from segpipe.core.system_names import below
from segpipe.dataset.grids import labels_exactly_on
from segpipe.dataset.load import LoadedImage, read_label_file
from segpipe.metrics.calibration import Counts
from segpipe.planning.schema import Plan
from segpipe.preprocessing.prepare import Placement

MARGIN_MM = 10.0
"""Around the box of all foreground, the reference's and the prediction's: elsewhere nearly all voxels are surely background, and would
hide what is not sure."""


class CaseReliability(Artefact):
    """Bins of one case, by label: voxels, sum of their probabilities, how many have the label."""

    case: str
    bins: dict[str, tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...]]]

    def counts(self, label: str) -> Counts:
        """Return the bins of a label."""
        n, probability, present = (np.array(values) for values in self.bins[label])
        return Counts(n, probability, present)


@dataclass(frozen=True)
class Reliability:
    """Counts the probabilities of cases whose references are known; a file a case, written when its last plane was seen."""

    plan: Plan
    references: Mapping[str, Path]
    folder: Path

    def sink_of(self, case: str, image: LoadedImage) -> Callable[[Placement, int, Any], None]:
        """Return what is to be given the planes of a case. No file is written where neither reference nor prediction holds anything.

        Raises
        ------
        CaseError
            If the reference cannot be read, or lies on another grid.
        """
        labels = self.plan.labels
        stored = read_label_file(case, self.references[case], labels)
        canonical = image.orientation.apply(labels_exactly_on(case, "image", image.stored_grid, "reference", stored))
        reference = canonical.transpose(self.plan.transpose_forward)
        spacing = [image.volume.grid.spacing_mm[axis] for axis in self.plan.transpose_forward]
        return _Counter(self, case, reference, spacing).add


class _Counter:
    def __init__(self, of: Reliability, case: str, reference: NDArray[Any], spacing_mm: list[float]) -> None:
        self.of, self.case, self.reference, self.spacing_mm = of, case, reference, spacing_mm
        self.boxes: list[Box] = []
        """Boxes of the reference's foreground, and of the foreground of each predicted plane."""
        foreground = ~np.isin(reference, of.plan.labels.aside)
        if foreground.any():
            self.boxes.append(bounding_box(foreground))
        self.seen = of.folder / f".{case}.planes"

    def add(self, placement: Placement, number: int, probabilities: Any) -> None:
        """Keep a plane (K, Y, X) of the crop, and count when it is the last one."""
        outputs = probabilities.cpu().numpy()
        regions = self.of.plan.labels.regions
        found = (outputs > 0.5).any(0) if regions else outputs[0] < outputs[1:].max(0)
        if found.any():
            plane, start_y, start_x = placement.start[0] + number, *placement.start[1:]
            _, y, x = bounding_box(found[None])
            self.boxes.append((slice(plane, plane + 1), _moved(y, start_y), _moved(x, start_x)))
        self.seen.parent.mkdir(parents=True, exist_ok=True)
        with self.seen.open("ab" if number else "wb") as file:
            file.write(outputs[0 if regions else 1 :].astype(np.float16).tobytes())
        if number == placement.shape_after_crop[0] - 1:
            if self.boxes:
                self._count(placement)
            self.seen.unlink()

    def _count(self, placement: Placement) -> None:
        labels = self.of.plan.labels
        counts = {name: Counts.none() for name in labels.names}
        box = _meeting(_widened(_around(self.boxes), self.spacing_mm, self.reference.shape), placement.box)
        shape = (len(labels.targets), *placement.shape_after_crop[1:])
        planes = np.memmap(self.seen, np.float16, "r", shape=(placement.shape_after_crop[0], *shape))
        z, *within = (_moved(side, -start) for side, start in zip(box, placement.start, strict=True))
        for number in range(z.start, z.stop):
            said = np.array(planes[number][:, *within])
            there = self.reference[placement.start[0] + number, *box[1:]]
            known = np.ones(there.shape, dtype=bool) if labels.ignore is None else there != labels.ignore
            for target, probabilities in zip(labels.targets, said, strict=True):
                counted = Counts.of(probabilities[known], np.isin(there[known], target.values))
                counts[target.name] = counts[target.name] + counted
        del planes
        bins = {
            name: (tuple(c.n.tolist()), tuple(c.probability.tolist()), tuple(c.present.tolist()))
            for name, c in counts.items()
        }
        CaseReliability(case=self.case, bins=bins).write(below(self.of.folder, f"{self.case}.json"))


def _around(boxes: list[Box]) -> Box:
    z, y, x = (slice(min(s.start for s in sides), max(s.stop for s in sides)) for sides in zip(*boxes, strict=True))
    return z, y, x


def _meeting(box: Box, other: Box) -> Box:
    """Where two boxes meet; sides that do not are empty."""
    z, y, x = (
        slice(max(a.start, b.start), max(min(a.stop, b.stop), a.start, b.start))
        for a, b in zip(box, other, strict=True)
    )
    return z, y, x


def _moved(side: slice, by: int) -> slice:
    return slice(side.start + by, side.stop + by)


def _widened(box: Box, spacing_mm: list[float], shape: tuple[int, ...]) -> Box:
    z, y, x = (
        slice(max(side.start - round(MARGIN_MM / mm), 0), min(side.stop + round(MARGIN_MM / mm), n))
        for side, mm, n in zip(box, spacing_mm, shape, strict=True)
    )
    return z, y, x
