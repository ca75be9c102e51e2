"""What can be told of a segmentation without a reference."""

import numpy as np
from numpy.typing import NDArray

from segpipe.geometry import bounding_box
from segpipe.inference.predictor import Prediction
from segpipe.inference.schema import Quality
from segpipe.labels import Labels
from segpipe.postprocessing.apply import components
from segpipe.volume import Volume


def volumes_ml(labels: NDArray[np.unsignedinteger], voxel_mm3: float, declared: Labels) -> dict[str, float]:
    """Volume of each label or region, in ml."""
    counts = np.bincount(labels.ravel(), minlength=max(declared.accepted) + 1)
    return {t.name: round(float(counts[list(t.values)].sum() * voxel_mm3 / 1000), 4) for t in declared.targets}


def quality_of(prediction: Prediction, image: Volume, declared: Labels) -> Quality:
    """Measure a prediction (Z, Y, X) on its image's grid."""
    pieces, touching = {}, []
    for target in declared.targets:
        mask = np.isin(prediction.labels, target.values)
        pieces[target.name] = 0
        if mask.any():
            box = bounding_box(mask)
            pieces[target.name] = len(components(mask[box])[1]) - 1
            if any(s.start == 0 or s.stop == n for s, n in zip(box, mask.shape, strict=True) if n > 1):
                touching.append(target.name)
    measured = prediction.measured
    return Quality(
        spacing_mm=image.grid.spacing_mm,
        mean_entropy=_rounded(measured.mean_entropy),
        disagreement=_rounded(measured.agreement.disagreement),
        components=pieces,
        touches_border=tuple(touching),
    )


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 5)
