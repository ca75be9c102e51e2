"""Models held against each other: statistics by hand, and what a comparison of real model files says."""

import numpy as np
import pytest
from scipy.stats import wilcoxon

from segpipe.evaluation.comparison import ALL_LABELS
from segpipe.evaluation.schema import CaseScores, LabelScore
from segpipe.evaluation.statistics import (
    bootstrap_interval,
    difference,
    kept_share,
    paired_scores,
    retention,
    signed_rank_p,
)


def case(name, **dice):
    labels = {
        label: LabelScore(
            status="not_applicable" if value is None else "scored",
            dice=value,
            nsd=value,
            hd95_mm=None if value is None else 10 * (1 - value),
            volume_prediction_ml=1,
            volume_reference_ml=1,
        )
        for label, value in dice.items()
    }
    return CaseScores(case=name, labels=labels)


CASES = (case("a1", liver=0.9, lesion=0.5), case("a2", liver=0.7, lesion=None), case("b1", liver=0.6, lesion=0.2))
PATIENTS = {"a1": "a", "a2": "a", "b1": "b"}


def scores(label, other=CASES, metric="dice"):
    return paired_scores(CASES, other, PATIENTS, label, metric)


def test_scores_are_those_of_patients():
    assert scores("liver")[0] == pytest.approx({"a": 0.8, "b": 0.6})
    assert scores("lesion")[0] == pytest.approx({"a": 0.5, "b": 0.2})
    # Each case's mean over the labels that it has, then each patient's over its cases.
    assert scores(ALL_LABELS)[0] == pytest.approx({"a": 0.7, "b": 0.4})


def test_both_models_are_scored_on_the_same_cases_and_labels():
    # The second falsely finds a lesion in a2, which the first rightly leaves out; and it lost b1.
    other = (CASES[0], case("a2", liver=0.7, lesion=0.0))
    assert scores("lesion", other) == ({"a": pytest.approx(0.75)}, {"a": pytest.approx(0.25)})
    assert scores("lesion", other, "hd95_mm") == ({"a": pytest.approx(2.5)}, {"a": pytest.approx(7.5)})
    assert set(scores("liver", other)[0]) == {"a"}
    found = retention("s", CASES, other, PATIENTS, parameters=5, macs=None)
    assert found.dice_percent == pytest.approx(100 * (0.7 + 0.35) / 2 / ((0.7 + 0.85) / 2))
    assert found.lowest_label == "lesion"


def test_a_difference_is_paired_with_its_interval_and_its_test():
    rng = np.random.default_rng(0)
    first = {f"p{i}": float(v) for i, v in enumerate(rng.uniform(0.6, 0.9, 20))}
    second = {p: v + 0.02 + 0.01 * float(rng.normal()) for p, v in first.items()}
    found = difference(("x", "y"), (first, second), "liver", "dice")
    deltas = np.array([second[p] - first[p] for p in sorted(second)])
    assert found.n_patients == 20
    assert found.mean == pytest.approx(deltas.mean())
    assert found.low < found.mean < found.high
    assert found.low > 0
    assert found.p == pytest.approx(wilcoxon(deltas).pvalue)
    # As wide as the standard error says.
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * deltas.std(ddof=1) / np.sqrt(20), rel=0.15)


def test_few_patients_and_no_difference_have_no_test():
    assert signed_rank_p(np.array([0.1, 0.2, 0.3, 0.4])) is None
    assert signed_rank_p(np.zeros(30)) is None
    assert bootstrap_interval(np.array([0.1])) == (None, None)
    assert difference(("x", "y"), ({}, {}), "liver", "dice").mean is None


def test_kept_shares_draw_both_models_on_the_same_patients():
    teacher = {f"p{i}": v for i, v in enumerate(np.random.default_rng(1).uniform(0.2, 0.9, 25))}
    student = {p: 0.95 * v for p, v in teacher.items()}
    # A student that keeps 95 % of each patient keeps 95 % of every draw, however much patients differ.
    assert kept_share(teacher, student) == pytest.approx((95.0, 95.0, 95.0))
    assert kept_share({"a": 0.0}, {"a": 0.5}) == (None, None, None)
    found = retention("s", CASES, (case("a1", liver=0.45, lesion=0.5), *CASES[1:]), PATIENTS, parameters=5, macs=6)
    assert found.lowest_label == "liver"
    assert found.lowest_label_percent == pytest.approx(100 * (0.575 + 0.6) / (0.8 + 0.6))
    assert found.dice_percent < 100
