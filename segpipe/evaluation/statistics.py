"""Paired statistics of scores, patient by patient. Pure, no torch."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata, wilcoxon

from segpipe.evaluation.comparison import ALL_LABELS, Difference, Metric, Retention
from segpipe.evaluation.schema import CaseScores, LabelScore
from segpipe.evaluation.score import mean_over_labels
from segpipe.execution.quiet import ignored_warnings

N_BOOTSTRAP = 10_000
_SEED = 20_190_301
LEAST_DIFFERING = 5
"""Patients that a rank test needs: with fewer no result is below 0.06."""

Floats = NDArray[np.float64]


def paired_scores(
    first: tuple[CaseScores, ...],
    second: tuple[CaseScores, ...],
    patients: Mapping[str, str],
    label: str,
    metric: Metric,
) -> tuple[dict[str, float], dict[str, float]]:
    """Mean score of each patient by two models, over the same cases and labels: those of cases that both have a score of.

    Over all labels it is the mean of each case's mean over its labels. A label that neither reference nor prediction has is right;
    where one model rightly leaves out what the other one falsely finds, it counts as perfect against the other's 0.
    """
    seconds = {case.case: case for case in second}
    found: tuple[dict[str, list[float]], dict[str, list[float]]] = ({}, {})
    for case in first:
        if case.case not in seconds:
            continue
        names = list(case.labels) if label == ALL_LABELS else [label]
        pairs = [_pair(case.labels[name], seconds[case.case].labels[name], metric) for name in names]
        patient = patients.get(case.case, case.case)
        for number, side in enumerate(found):
            mean = mean_over_labels([pair[number] for pair in pairs])
            if mean is not None:
                side.setdefault(patient, []).append(mean)
    means = [{patient: sum(v) / len(v) for patient, v in side.items()} for side in found]
    return means[0], means[1]


def _pair(first: LabelScore, second: LabelScore, metric: Metric) -> tuple[float | None, float | None]:
    """Two models' scores of one label: of both models, or None of both."""
    perfect = 0.0 if metric == "hd95_mm" else 1.0
    one, other = getattr(first, metric), getattr(second, metric)
    if one is None and other is None:
        return None, None
    return perfect if one is None else one, perfect if other is None else other


def difference(
    names: tuple[str, str], scores: tuple[Mapping[str, float], Mapping[str, float]], label: str, metric: Metric
) -> Difference:
    """Compare two models' scores of the same patients.

    Parameters
    ----------
    names : tuple of str
    scores : tuple of mapping
        Scores as :func:`paired_scores` returns them.
    label, metric
        What they are scores of.
    """
    deltas = np.array([scores[1][p] - scores[0][p] for p in sorted(scores[0])])
    low, high = bootstrap_interval(deltas)
    return Difference(
        first=names[0],
        second=names[1],
        label=label,
        metric=metric,
        n_patients=len(deltas),
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
    # Ties make the test approximate; that is known.
    with ignored_warnings(Warning):
        return float(wilcoxon(deltas).pvalue)


def kept_share(
    reference: Mapping[str, float], model: Mapping[str, float]
) -> tuple[float | None, float | None, float | None]:
    """Percent of the reference's mean that a model keeps, with a 95 % interval: patients are drawn, the same of both."""
    shared = sorted(reference)
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
    macs: float | None,
) -> Retention:
    """How much of the reference's scores a model keeps.

    Parameters
    ----------
    name : str
    reference, model : tuple of CaseScores
    patients : mapping of case to patient
    parameters, macs : float
        The model's, in percent of the reference's; None where nothing was computed.
    """

    def kept(label: str, metric: Metric) -> tuple[float | None, float | None, float | None]:
        return kept_share(*paired_scores(reference, model, patients, label, metric))

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


def holm(values: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down correction (Holm 1979); a test that could not be made has none, and does count as one of the family."""
    order = sorted((n for n, p in enumerate(values) if p is not None), key=lambda n: values[n] or 0.0)
    corrected: list[float | None] = [None] * len(values)
    highest = 0.0
    for rank, number in enumerate(order):
        highest = max(highest, min(1.0, (values[number] or 0.0) * (len(values) - rank)))
        corrected[number] = highest
    return corrected


def rank_biserial(deltas: np.ndarray) -> float | None:
    """Matched-pairs rank-biserial correlation (Kerby 2014): the share of rank sums in favour minus that against."""
    differing = deltas[deltas != 0]
    if not len(differing):
        return None
    ranks = rankdata(np.abs(differing))
    return float((ranks[differing > 0].sum() - ranks[differing < 0].sum()) / ranks.sum())


def standardised_mean(deltas: np.ndarray) -> float | None:
    """Mean difference over the standard deviation of differences; None where these are all alike."""
    if len(deltas) < 2:
        return None
    sd = float(deltas.std(ddof=1))
    return None if sd == 0 or math.isclose(sd, 0, abs_tol=1e-12) else float(deltas.mean() / sd)
