"""What can be said of a segmentation without a reference."""

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import find_objects

from segpipe.core.geometry import Box
from segpipe.core.labels import Labels, Target
from segpipe.core.volume import Volume
from segpipe.inference.predictor import Prediction
from segpipe.inference.schema import Quality
from segpipe.planning.guard import drift
from segpipe.planning.schema import Plan
from segpipe.planning.usual import unusual_spacing, unusual_volumes
from segpipe.postprocessing.apply import components

Percentiles = tuple[tuple[float, ...], ...]


def voxels_of(labels: NDArray[np.unsignedinteger], declared: Labels) -> dict[str, int]:
    """Voxels of each label or region."""
    indices = declared.indices_of(labels)
    counts = np.bincount(indices.ravel(), minlength=len(declared.values) + 1)
    return {t.name: int(counts[list(m)].sum()) for t, m in zip(declared.targets, declared.members, strict=True)}


def volumes_ml(voxels: dict[str, int], voxel_mm3: float) -> dict[str, float]:
    """Volume of each label or region, in ml."""
    return {name: round(n * voxel_mm3 / 1000, 4) for name, n in voxels.items()}


def quality_of(
    prediction: Prediction, image: Volume, percentiles: Percentiles, voxels: dict[str, int], plan: Plan
) -> Quality:
    """Measure a prediction (Z, Y, X) on its image's grid; each label is looked at in its bounding box."""
    labels, declared = prediction.labels, plan.labels
    boxes = find_objects(declared.indices_of(labels))
    pieces, touching = {}, []
    for target, members in zip(declared.targets, declared.members, strict=True):
        box = _around([boxes[m - 1] for m in members if m <= len(boxes)])
        pieces[target.name] = 0 if box is None else _pieces(labels[box], target)
        if box is not None and any(
            s.start == 0 or s.stop == n for s, n in zip(box, labels.shape, strict=True) if n > 1
        ):
            touching.append(target.name)
    measured = prediction.measured
    return Quality(
        spacing_mm=image.grid.spacing_mm,
        mean_entropy=_rounded(measured.mean_entropy),
        disagreement=_rounded(measured.agreement.disagreement),
        components=pieces,
        touches_border=tuple(touching),
        intensity_drift=drift(percentiles, plan.guard),
        spacing_outside=tuple(unusual_spacing(image.grid.spacing_mm, plan.usual)),
        volume_outside=tuple(unusual_volumes(voxels, image.grid.shape, image.grid.spacing_mm, plan.usual)),
    )


def _pieces(part: NDArray[np.unsignedinteger], target: Target) -> int:
    return len(components(np.isin(part, target.values))[1]) - 1


def _around(boxes: list[Box | None]) -> Box | None:
    """The box around several, of which some are empty."""
    there = [box for box in boxes if box is not None]
    if not there:
        return None
    z, y, x = (slice(min(s.start for s in axis), max(s.stop for s in axis)) for axis in zip(*there, strict=True))
    return z, y, x


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 5)
