"""Which candidate, or ensemble of candidates, is best on the out-of-fold cases of one study. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

from segpipe.crossvalidation.schema import Ranked
from segpipe.evaluation.schema import CaseScores, Evaluation
from segpipe.evaluation.score import mean_over_labels

MOST_ENSEMBLED = 4
"""Candidates that are tried in pairs; of more, only the best are."""
Members = tuple[str, ...]


def pairs_to_try(singles: Mapping[str, Sequence[Evaluation]]) -> list[Members]:
    """Ensembles of two that are worth computing: among the best single candidates.

    Parameters
    ----------
    singles : mapping of candidate to its evaluations, one an inner fold
    """
    cases = shared_cases({(name,): found for name, found in singles.items()})
    ranked = rank({(name,): found for name, found in singles.items()}, cases)
    return list(combinations((r.members[0] for r in ranked[:MOST_ENSEMBLED]), 2))


def shared_cases(evaluated: Mapping[Members, Sequence[Evaluation]]) -> tuple[str, ...]:
    """Out-of-fold cases that every candidate was scored on."""
    found = [{case.case for evaluation in folds for case in evaluation.cases} for folds in evaluated.values()]
    return tuple(sorted(set.intersection(*found))) if found else ()


def rank(evaluated: Mapping[Members, Sequence[Evaluation]], cases: Sequence[str]) -> tuple[Ranked, ...]:
    """Rank candidates by the mean over labels of their mean Dice over cases; of equals the smaller, then the earlier one comes first.

    Parameters
    ----------
    evaluated : mapping of members to evaluations, one an inner fold
    cases : sequence of str
        What is compared on.
    """
    wanted, ranked = set(cases), []
    for members, folds in evaluated.items():
        scores = [case for evaluation in folds for case in evaluation.cases if case.case in wanted]
        by_label = _mean_dice(scores)
        mean = mean_over_labels(list(by_label.values()))
        ranked.append(Ranked(members=members, mean_dice=mean, by_label=by_label, n_cases=len(scores)))
    return tuple(sorted(ranked, key=lambda r: (-(r.mean_dice or 0.0), len(r.members))))


def _mean_dice(scores: Sequence[CaseScores]) -> dict[str, float | None]:
    names = dict.fromkeys(name for case in scores for name in case.labels)
    return {name: mean_over_labels([case.labels[name].dice for case in scores]) for name in names}
