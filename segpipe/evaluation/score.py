"""Scores from arrays. Pure."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from segpipe.core.geometry import Grid
from segpipe.core.labels import Labels
from segpipe.evaluation.comparison import ALL_LABELS, Metric
from segpipe.evaluation.schema import CaseScores, LabelScore, LabelSummary, Status
from segpipe.metrics.overlap import dice
from segpipe.metrics.surface import SurfaceUnit, surface_distances

SCORED_AS_OF = "0.1.0.dev7"
"""The version that last changed what a score is: then those of two-dimensional images became those of contours.

An evaluation holds it. Raise it when the same masks get other scores.
"""


def score_case(
    case: str,
    prediction: NDArray[np.integer],
    reference: NDArray[np.integer],
    grid: Grid,
    labels: Labels,
    tolerance_mm: float,
    *,
    nsd_unit: SurfaceUnit = "voxels",
) -> CaseScores:
    """Score every label, or region of labels, of a case.

    Parameters
    ----------
    case : str
    prediction, reference : ndarray of int, shape (Z, Y, X)
    grid : Grid
        Grid of both.
    labels : Labels
        What is scored; voxels whose reference is to be ignored belong to nothing in either mask.
    tolerance_mm : float
        Tolerance of the normalised surface Dice, in mm.
    nsd_unit : "voxels" or "area"
        What the normalised surface Dice counts.
    """
    kept = None if labels.ignore is None else reference != labels.ignore

    def mask_of(array: NDArray[np.integer], values: tuple[int, ...]) -> NDArray[np.bool_]:
        mask: NDArray[np.bool_] = array == values[0] if len(values) == 1 else np.isin(array, values)
        return mask if kept is None else mask & kept

    scores = {
        t.name: _score_label(mask_of(prediction, t.values), mask_of(reference, t.values), grid, tolerance_mm, nsd_unit)
        for t in labels.targets
    }
    return CaseScores(case=case, labels=scores)


def _score_label(
    prediction: NDArray[np.bool_],
    reference: NDArray[np.bool_],
    grid: Grid,
    tolerance_mm: float,
    nsd_unit: SurfaceUnit,
) -> LabelScore:
    voxel_ml = grid.voxel_volume_mm3 / 1000
    n_predicted, n_reference = int(prediction.sum()), int(reference.sum())

    def scored(status: Status, dice: float | None, nsd: float | None, hd95_mm: float | None) -> LabelScore:
        return LabelScore(
            status=status,
            dice=dice,
            nsd=nsd,
            hd95_mm=hd95_mm,
            volume_prediction_ml=n_predicted * voxel_ml,
            volume_reference_ml=n_reference * voxel_ml,
        )

    if not n_predicted and not n_reference:
        return scored("not_applicable", None, None, None)
    if not n_predicted or not n_reference:
        return scored("missed" if n_reference else "spurious", 0.0, 0.0, grid.diagonal_mm)
    masks = prediction, reference, grid.spacing_mm
    distances = surface_distances(*masks)
    counted = distances if nsd_unit == "voxels" else surface_distances(*masks, nsd_unit)
    return scored(
        "scored",
        dice(prediction, reference),
        counted.normalised_surface_dice(tolerance_mm),
        distances.hausdorff_mm(95),
    )


def summarise_label(scores: list[LabelScore]) -> LabelSummary:
    """Summarise one label over cases."""
    counts = {status: sum(s.status == status for s in scores) for status in ("missed", "spurious", "not_applicable")}
    return LabelSummary(
        n_cases=len(scores),
        n_applicable=len(scores) - counts["not_applicable"],
        n_missed=counts["missed"],
        n_spurious=counts["spurious"],
        n_not_applicable=counts["not_applicable"],
        mean_dice=_mean(scores, lambda s: s.dice),
        mean_nsd=_mean(scores, lambda s: s.nsd),
        mean_hd95_mm=_mean(scores, lambda s: s.hd95_mm),
    )


def case_value(case: CaseScores, label: str, metric: Metric) -> float | None:
    """Return one score of a case; None where nothing applies.

    Parameters
    ----------
    case : CaseScores
    label : str
        A label's name, or ``ALL_LABELS`` for the mean over the labels that apply to the case.
    metric : str
    """
    if label == ALL_LABELS:
        return mean_over_labels([getattr(score, metric) for score in case.labels.values()])
    return getattr(case.labels[label], metric) if label in case.labels else None


def mean_over_labels(values: Sequence[float | None]) -> float | None:
    """Mean of the labels that apply to a case at all; None when none does."""
    present = [v for v in values if v is not None]
    return float(np.mean(present)) if present else None


def _mean(scores: list[LabelScore], of: Callable[[LabelScore], float | None]) -> float | None:
    return mean_over_labels([of(s) for s in scores])
