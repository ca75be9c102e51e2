"""What the pooled out-of-fold scores say: intervals over patients, spread over folds, paired tests. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np

from segpipe.crossvalidation.schema import PairedTest, Spread
from segpipe.evaluation.comparison import ALL_LABELS, METRICS, Metric
from segpipe.evaluation.schema import CaseScores
from segpipe.evaluation.score import case_value
from segpipe.evaluation.statistics import (
    bootstrap_interval,
    difference,
    holm,
    paired_scores,
    rank_biserial,
    standardised_mean,
)

Folds = Mapping[str, Sequence[CaseScores]]
"""Scores of the test cases of each outer fold."""


def spreads(folds: Folds, patients: Mapping[str, str], labels: Sequence[str]) -> dict[str, dict[str, Spread]]:
    """Every metric of every label, and of the mean over labels."""
    return {
        label: {metric: spread(folds, patients, label, metric) for metric in METRICS} for label in (*labels, ALL_LABELS)
    }


def spread(folds: Folds, patients: Mapping[str, str], label: str, metric: Metric) -> Spread:
    """One metric over patients: of several cases, labels or repeats of a patient the mean is taken first.

    Parameters
    ----------
    folds : mapping of fold to scores
    patients : mapping of case to patient
    label : str
        A label's name, or the mean of labels.
    metric : str
    """
    by_patient: dict[str, list[float]] = {}
    fold_means: dict[str, float] = {}
    for name, scores in folds.items():
        values = {case.case: value for case in scores if (value := case_value(case, label, metric)) is not None}
        for case, value in values.items():
            by_patient.setdefault(patients[case], []).append(value)
        if values:
            fold_means[name] = float(np.mean(list(values.values())))
    means = np.array([np.mean(by_patient[patient]) for patient in sorted(by_patient)])
    low, high = bootstrap_interval(means)
    several = list(fold_means.values())
    return Spread(
        n_patients=len(means),
        mean=float(means.mean()) if len(means) else None,
        median=float(np.median(means)) if len(means) else None,
        sd=float(means.std(ddof=1)) if len(means) > 1 else None,
        low=low,
        high=high,
        fold_means=fold_means,
        between_folds_sd=float(np.std(several, ddof=1)) if len(several) > 1 else None,
    )


def paired_tests(candidates: Mapping[str, Folds], patients: Mapping[str, str]) -> tuple[PairedTest, ...]:
    """Mean Dice of every pair of candidates, patient by patient, with Holm's correction over all pairs.

    Parameters
    ----------
    candidates : mapping of candidate to scores of the test cases, by outer fold
    patients : mapping of case to patient
    """
    found = []
    for first, second in combinations(candidates, 2):
        paired = _paired(candidates[first], candidates[second], patients)
        told = difference((first, second), paired, ALL_LABELS, "dice")
        deltas = np.array([paired[1][p] - paired[0][p] for p in sorted(paired[0])])
        found.append((told, deltas))
    corrected = holm([told.p for told, _ in found])
    return tuple(
        PairedTest(
            first=told.first,
            second=told.second,
            n_patients=told.n_patients,
            mean=told.mean,
            low=told.low,
            high=told.high,
            p=told.p,
            p_holm=p_holm,
            rank_biserial=rank_biserial(deltas),
            standardised_mean=standardised_mean(deltas),
        )
        for (told, deltas), p_holm in zip(found, corrected, strict=True)
    )


def _paired(first: Folds, second: Folds, patients: Mapping[str, str]) -> tuple[dict[str, float], dict[str, float]]:
    """Scores of each patient by two candidates: paired within each fold, so that a repeat meets the same repeat, then averaged."""
    sides: tuple[dict[str, list[float]], dict[str, list[float]]] = ({}, {})
    for name in first:
        if name in second:
            paired = paired_scores(tuple(first[name]), tuple(second[name]), patients, ALL_LABELS, "dice")
            for side, found in zip(sides, paired, strict=True):
                for patient, value in found.items():
                    side.setdefault(patient, []).append(value)
    one, other = ({patient: float(np.mean(values)) for patient, values in side.items()} for side in sides)
    return one, other
