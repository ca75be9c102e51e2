"""Paired statistics of scores, patient by patient. Pure, no torch."""

import warnings
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from scipy.stats import wilcoxon

from segpipe.comparison.schema import ALL_LABELS, Difference, Metric, Retention
from segpipe.evaluation.schema import CaseScores

N_BOOTSTRAP = 10_000
_SEED = 20_190_301
LEAST_DIFFERING = 5
"""Patients that a rank test needs: with fewer no result is below 0.06."""

Floats = NDArray[np.float64]


def patient_scores(
    cases: tuple[CaseScores, ...], patients: Mapping[str, str], label: str, metric: Metric
) -> dict[str, float]:
    """Mean score of each patient's cases in which a label applies; over all labels, of each case's mean over its labels.

    A label that only one of prediction and reference has is scored (evaluation's rule); one that neither has does not count.
    """
    found: dict[str, list[float]] = {}
    for case in cases:
        scored = case.labels.values() if label == ALL_LABELS else [case.labels[label]]
        values = [value for score in scored if (value := getattr(score, metric)) is not None]
        if values:
            found.setdefault(patients.get(case.case, case.case), []).append(sum(values) / len(values))
    return {patient: sum(values) / len(values) for patient, values in found.items()}


def difference(
    first: tuple[str, Mapping[str, float]], second: tuple[str, Mapping[str, float]], label: str, metric: Metric
) -> Difference:
    """Compare the scores of two models on the patients that both have.

    Parameters
    ----------
    first, second : tuple of (name, scores by patient)
    label, metric
        What they are scores of.
    """
    shared = sorted(first[1].keys() & second[1].keys())
    deltas = np.array([second[1][p] - first[1][p] for p in shared])
    low, high = bootstrap_interval(deltas)
    return Difference(
        first=first[0],
        second=second[0],
        label=label,
        metric=metric,
        n_patients=len(shared),
        mean=float(deltas.mean()) if len(deltas) else None,
        low=low,
        high=high,
        p=signed_rank_p(deltas),
    )


def bootstrap_interval(values: Floats) -> tuple[float | None, float | None]:
    """95 % interval of the mean: percentiles of the means of patients drawn with replacement; none of fewer than two."""
    if len(values) < 2:
        return None, None
    means = values[_drawn(len(values))].mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def signed_rank_p(deltas: Floats) -> float | None:
    """Two-sided p of Wilcoxon's signed rank test; patients without a difference do not count, as in Wilcoxon 1945."""
    if np.count_nonzero(deltas) < LEAST_DIFFERING:
        return None
    with warnings.catch_warnings():
        # Ties make the test approximate; that is known.
        warnings.simplefilter("ignore")
        return float(wilcoxon(deltas).pvalue)


def kept_share(
    reference: Mapping[str, float], model: Mapping[str, float]
) -> tuple[float | None, float | None, float | None]:
    """Percent of the reference's mean that a model keeps, with a 95 % interval: patients are drawn, both models on the same."""
    shared = sorted(reference.keys() & model.keys())
    theirs, ours = (np.array([scores[p] for p in shared]) for scores in (reference, model))
    if not len(shared) or theirs.mean() <= 0:
        return None, None, None
    share = float(100 * ours.mean() / theirs.mean())
    if len(shared) < 2:
        return share, None, None
    drawn = _drawn(len(shared))
    means = theirs[drawn].mean(axis=1)
    ratios = 100 * ours[drawn].mean(axis=1)[means > 0] / means[means > 0]
    low, high = np.percentile(ratios, [2.5, 97.5])
    return share, float(low), float(high)


def retention(
    name: str,
    reference: tuple[CaseScores, ...],
    model: tuple[CaseScores, ...],
    patients: Mapping[str, str],
    *,
    parameters: float,
    macs: float,
) -> Retention:
    """How much of the reference's scores a model keeps.

    Parameters
    ----------
    name : str
    reference, model : tuple of CaseScores
    patients : mapping of case to patient
    parameters, macs : float
        The model's, in percent of the reference's.
    """

    def kept(label: str, metric: Metric) -> tuple[float | None, float | None, float | None]:
        return kept_share(
            patient_scores(reference, patients, label, metric), patient_scores(model, patients, label, metric)
        )

    dice, low, high = kept(ALL_LABELS, "dice")
    labels = list(reference[0].labels) if reference else []
    shares = {label: share for label in labels if (share := kept(label, "dice")[0]) is not None}
    lowest = min(shares, key=lambda label: shares[label]) if shares else None
    return Retention(
        model=name,
        dice_percent=dice,
        low=low,
        high=high,
        nsd_percent=kept(ALL_LABELS, "nsd")[0],
        parameters_percent=parameters,
        macs_percent=macs,
        lowest_label=lowest,
        lowest_label_percent=None if lowest is None else shares[lowest],
    )


def _drawn(n: int) -> NDArray[np.intp]:
    """Patients drawn with replacement, the same for every comparison of as many."""
    return np.random.default_rng(_SEED).integers(n, size=(N_BOOTSTRAP, n))
