"""Choose rules on predictions of cases that the model did not see: only what helps, and makes no label worse."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segpipe.core.geometry import bounding_box
from segpipe.core.labels import Labels
from segpipe.dataset.grids import labels_exactly_on
from segpipe.dataset.load import read_label_file
from segpipe.errors import CaseError, SegpipeError
from segpipe.execution import processes
from segpipe.execution.memory import BYTES_A_LABEL_VOXEL
from segpipe.execution.processes import Workers
from segpipe.io.formats import most_voxels
from segpipe.postprocessing.apply import apply_rules
from segpipe.postprocessing.schema import EVERYTHING, PostprocessingRules, Rule, Trial

SIZES_MM3 = (10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0, 10000.0)
"""Least sizes of a component that are tried."""
_GAIN = 1e-4
"""Less of a mean Dice is no gain."""
_LOSS = 1e-6

Dices = dict[str, float]
Pair = tuple[str, Path, Path]


@dataclass(frozen=True)
class _Task:
    pair: Pair
    labels: Labels
    candidates: tuple[tuple[Rule, ...], ...]


def candidates(labels: Labels) -> tuple[Rule, ...]:
    """Rules that are tried: of the foreground as a whole first, then of each label or region."""
    tried = []
    for name in (EVERYTHING, *labels.names):
        tried.append(Rule(label=name, keep="largest"))
        tried += [Rule(label=name, min_mm3=size) for size in SIZES_MM3]
        tried.append(Rule(label=name, fill_holes=True))
    return tuple(tried)


def choose_rules(
    pairs: Sequence[Pair],
    labels: Labels,
    *,
    chosen_on: str,
    workers: Workers = None,
    on_pass: Callable[[str], None] = lambda _: None,
) -> tuple[PostprocessingRules, dict[str, str]]:
    """Choose rules; returns them, and the cases that could not be read with the reasons.

    In four passes over the cases: what is removed from the foreground as a whole, what fills it, what is removed from each label, what
    fills each. Of each label's rules the one is taken that raises the sum of the labels' mean Dice most and makes none worse, on top of
    the passes before. Where those of a pass together make a label worse (regions overlap), only the best one is.

    Parameters
    ----------
    pairs : sequence of (case, prediction, reference)
        Predictions by models that did not see the case.
    labels : Labels
    chosen_on : str
        What the predictions are, to be kept with the rules.
    workers : int or executor, optional
        Most worker processes, or whose.
    on_pass : callable
        Receives what was tried, after each pass.

    Raises
    ------
    SegpipeError
        If no pair can be read.
    """
    trier = _Trier(pairs, labels, workers)
    chosen: tuple[Rule, ...] = ()
    trials: list[Trial] = []
    for names, whose in (((EVERYTHING,), "the whole foreground"), (labels.names, "each label")):
        for fills, what in ((False, "removing from"), (True, "filling")):
            tried = [r for r in candidates(labels) if r.label in names and r.fill_holes == fills]
            before, *after = trier.means([chosen, *((*chosen, rule) for rule in tried)])
            gains = {r: _gain(before, m) for r, m in zip(tried, after, strict=True) if _no_worse(before, m)}
            best = [_best({r: g for r, g in gains.items() if r.label == name}) for name in names]
            taken = tuple(rule for rule in best if rule is not None)
            if len(taken) > 1 and not _no_worse(before, trier.means([(*chosen, *taken)])[0]):
                taken = (max(taken, key=gains.__getitem__),)
            chosen = (*chosen, *taken)
            trials += [
                Trial(rule=r, before=_known(before), after=_known(m), chosen=r in taken)
                for r, m in zip(tried, after, strict=True)
            ]
            on_pass(f"{what} {whose}")
    n_cases = len(pairs) - len(trier.failed)
    return PostprocessingRules(rules=chosen, chosen_on=chosen_on, n_cases=n_cases, trials=tuple(trials)), trier.failed


class _Trier:
    """Applies lists of rules to every case; each case is read once for all of them."""

    def __init__(self, pairs: Sequence[Pair], labels: Labels, workers: Workers) -> None:
        self.pairs, self.labels, self.workers = pairs, labels, workers
        self.bytes_each = BYTES_A_LABEL_VOXEL * most_voxels(prediction for _, prediction, _ in pairs)
        self.failed: dict[str, str] = {}

    def means(self, lists: Sequence[tuple[Rule, ...]]) -> list[Dices]:
        """Mean Dice of each label, for each list of rules: over the same cases for all of them."""
        tasks = [_Task(pair, self.labels, ((), *lists)) for pair in self.pairs if pair[0] not in self.failed]
        tables = []
        for outcome in processes.map_cases(_dices, tasks, workers=self.workers, bytes_each=self.bytes_each):
            if outcome.value is None:
                self.failed[outcome.item.pair[0]] = outcome.failure or ""
            else:
                tables.append(outcome.value)
        if not tables:
            reason = next(iter(self.failed.values()), "none given")
            raise SegpipeError(f"no pair of a prediction and a reference can be read: {reason}")
        return [_means(tables, number, self.labels) for number in range(1, len(lists) + 1)]


def _best(gains: dict[Rule, float]) -> Rule | None:
    rule = max(gains, key=gains.__getitem__, default=None)
    return rule if rule is not None and gains[rule] > _GAIN else None


def _dices(task: _Task) -> list[Dices]:
    """Dice of each label, for each list of rules; only the box around all foreground is looked at."""
    case, prediction, reference = task.pair
    labels = task.labels
    stored, known = (read_label_file(case, path, labels) for path in (prediction, reference))
    predicted = stored.volume
    found, truth = predicted.array[0], labels_exactly_on(case, "prediction", predicted.grid, "reference", known)
    for name, array in (("prediction", found), ("reference", truth)):
        unknown = [int(v) for v in np.unique(array) if v not in labels.accepted]
        if unknown:
            raise CaseError(
                f"case {case!r}: the {name} holds the value {unknown[0]}; there are {list(labels.accepted)}"
            )
    anything = (found != labels.background) | (truth != labels.background)
    box = bounding_box(anything) if anything.any() else (slice(None),) * 3
    found, truth = found[box], labels.indices_of(truth[box])
    tables = []
    for rules in task.candidates:
        cleaned = labels.indices_of(apply_rules(found, predicted.grid.spacing_mm, labels, rules))
        tables.append(_dice_of_each(cleaned, truth, labels))
    return tables


def _dice_of_each(found: NDArray[np.int16], truth: NDArray[np.int16], labels: Labels) -> Dices:
    """Dice of every label or region from one table of how often each pair of indices meets; nan where both are empty."""
    n = len(labels.values) + 1
    meeting = np.bincount(found.ravel().astype(np.int64) * n + truth.ravel(), minlength=n * n).reshape(n, n)
    if labels.ignore_index is not None:
        meeting[:, labels.ignore_index] = 0
    dices = {}
    for target, members in zip(labels.targets, labels.members, strict=True):
        these = list(members)
        total = meeting[these].sum() + meeting[:, these].sum()
        dices[target.name] = float(2 * meeting[np.ix_(these, these)].sum() / total) if total else float("nan")
    return dices


def _means(tables: list[list[Dices]], number: int, labels: Labels) -> Dices:
    """Mean of each label by one list of rules, over cases that have the label or in which it was found before any rule; nan without such.

    A false alarm that is gone counts 1, as the right answer that it is: so all lists are compared over the same cases.
    """
    means = {}
    for name in labels.names:
        values = [table[number][name] for table in tables if not np.isnan(table[0][name])]
        means[name] = float(np.nan_to_num(values, nan=1.0).mean()) if values else float("nan")
    return means


def _gain(before: Dices, after: Dices) -> float:
    return float(np.nansum([after[name] - before[name] for name in before]))


def _no_worse(before: Dices, after: Dices) -> bool:
    return all(np.isnan(before[n]) or after[n] >= before[n] - _LOSS for n in before)


def _known(means: Dices) -> dict[str, float | None]:
    return {name: None if np.isnan(value) else round(value, 5) for name, value in means.items()}
