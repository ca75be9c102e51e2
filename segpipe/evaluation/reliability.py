"""What is said of voxels around a structure against what is there, counted while a case is predicted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segpipe.core.artefact import Artefact
from segpipe.core.geometry import Box, bounding_box
from segpipe.dataset.grids import labels_exactly_on
from segpipe.dataset.load import LoadedImage, read_label_file
from segpipe.metrics.calibration import Counts
from segpipe.planning.schema import Plan
from segpipe.preprocessing.prepare import Placement

MARGIN_MM = 10.0
"""Around the box of the reference's foreground: elsewhere nearly all voxels are surely background, and would hide what is not sure."""


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

    def sink_of(self, case: str, image: LoadedImage) -> Callable[[Placement, int, Any], None] | None:
        """Return what is to be given the planes of a case; None where its reference holds nothing.

        Raises
        ------
        CaseError
            If the reference cannot be read, or lies on another grid.
        """
        labels = self.plan.labels
        stored = read_label_file(case, self.references[case], labels)
        canonical = image.orientation.apply(labels_exactly_on(case, "image", image.stored_grid, "reference", stored))
        reference = canonical.transpose(self.plan.transpose_forward)
        foreground = ~np.isin(reference, labels.aside)
        if not foreground.any():
            return None
        spacing = [image.volume.grid.spacing_mm[axis] for axis in self.plan.transpose_forward]
        return _Counter(self, case, reference, _widened(bounding_box(foreground), spacing, reference.shape)).add


class _Counter:
    def __init__(self, of: Reliability, case: str, reference: NDArray[Any], box: Box) -> None:
        self.of, self.case, self.reference, self.box = of, case, reference, box
        self.counts = {name: Counts.none() for name in of.plan.labels.names}

    def add(self, placement: Placement, number: int, probabilities: Any) -> None:
        """Count a plane (K, Y, X) of the crop."""
        plane = placement.start[0] + number
        if self.box[0].start <= plane < self.box[0].stop:
            self._count(placement, plane, probabilities.cpu().numpy())
        if number == placement.shape_after_crop[0] - 1:
            bins = {
                name: (tuple(c.n.tolist()), tuple(c.probability.tolist()), tuple(c.present.tolist()))
                for name, c in self.counts.items()
            }
            CaseReliability(case=self.case, bins=bins).write(self.of.folder / f"{self.case}.json")

    def _count(self, placement: Placement, plane: int, probabilities: NDArray[np.float32]) -> None:
        labels = self.of.plan.labels
        ranges = [
            (max(inside.start, crop.start), min(inside.stop, crop.stop))
            for inside, crop in zip(self.box[1:], placement.box[1:], strict=True)
        ]
        (y0, y1), (x0, x1) = ranges
        if y0 >= y1 or x0 >= x1:
            return
        start_y, start_x = placement.start[1:]
        said = probabilities[:, y0 - start_y : y1 - start_y, x0 - start_x : x1 - start_x]
        there = self.reference[plane, y0:y1, x0:x1]
        known = np.ones(there.shape, dtype=bool) if labels.ignore is None else there != labels.ignore
        first = 0 if labels.regions else 1
        for number, target in enumerate(labels.targets):
            counted = Counts.of(said[first + number][known], np.isin(there[known], target.values))
            self.counts[target.name] = self.counts[target.name] + counted


def _widened(box: Box, spacing_mm: list[float], shape: tuple[int, ...]) -> Box:
    z, y, x = (
        slice(max(side.start - round(MARGIN_MM / mm), 0), min(side.stop + round(MARGIN_MM / mm), n))
        for side, mm, n in zip(box, spacing_mm, shape, strict=True)
    )
    return z, y, x
