"""Choose rules on predictions of cases that the model did not see: only what helps, and makes no label worse."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segpipe import jobs
from segpipe.dataset.load import along_axes_of, read_labels, require_same_grid
from segpipe.errors import CaseError, SegpipeError
from segpipe.io.formats import read_header
from segpipe.labels import Labels
from segpipe.metrics.overlap import dice
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
    jobs_limit: int | None = None,
    on_trial: Callable[[str], None] = lambda _: None,
) -> tuple[PostprocessingRules, dict[str, str]]:
    """Choose rules; returns them, and the cases that could not be read with the reasons.

    For the foreground as a whole and for each label the best rule that removes, and hole filling, are taken where the mean Dice of
    some label rises and that of none falls, given the rules before them.

    Parameters
    ----------
    pairs : sequence of (case, prediction, reference)
        Predictions by models that did not see the case.
    labels : Labels
    chosen_on : str
        What the predictions are, to be kept with the rules.
    jobs_limit : int, optional
        Most worker processes.
    on_trial : callable
        Told each label when it is done.

    Raises
    ------
    SegpipeError
        If no pair can be read.
    """
    chosen: tuple[Rule, ...] = ()
    trials: list[Trial] = []
    failed: dict[str, str] = {}
    bytes_each = peak_bytes(pairs)
    for name in (EVERYTHING, *labels.names):
        for kind in ("removal", "filling"):
            tried = [r for r in candidates(labels) if r.label == name and r.fill_holes == (kind == "filling")]
            lists = (chosen, *((*chosen, rule) for rule in tried))
            tasks = [_Task(pair, labels, lists) for pair in pairs if pair[0] not in failed]
            tables = []
            for outcome in jobs.map_cases(_dices, tasks, limit=jobs_limit, bytes_each=bytes_each):
                if outcome.value is None:
                    failed[outcome.item.pair[0]] = outcome.failure or ""
                else:
                    tables.append(outcome.value)
            if not tables:
                raise SegpipeError(
                    f"no pair of a prediction and a reference can be read: {next(iter(failed.values()), 'none given')}"
                )
            before, *after = (_means([t[number] for t in tables], labels) for number in range(len(lists)))
            better = [
                (_gain(before, means), rule)
                for rule, means in zip(tried, after, strict=True)
                if _no_worse(before, means)
            ]
            best = max(better, key=lambda b: b[0], default=(0.0, None))
            taken = best[1] if best[0] > _GAIN else None
            trials += [
                Trial(rule=r, before=_known(before), after=_known(m), chosen=r == taken)
                for r, m in zip(tried, after, strict=True)
            ]
            chosen = chosen if taken is None else (*chosen, taken)
        on_trial("the whole foreground" if name == EVERYTHING else name)
    rules = PostprocessingRules(
        rules=chosen, chosen_on=chosen_on, n_cases=len(pairs) - len(failed), trials=tuple(trials)
    )
    return rules, failed


def _dices(task: _Task) -> list[Dices]:
    """Dice of each label, for each list of rules."""
    case, prediction, reference = task.pair
    predicted, known = (read_labels(case, path, task.labels) for path in (prediction, reference))
    require_same_grid(case, "prediction", predicted.grid, "reference", known.grid)
    found, truth = predicted.array[0], along_axes_of(predicted.grid, known).array[0]
    keep = truth != task.labels.ignore if task.labels.ignore is not None else None
    tables = []
    for rules in task.candidates:
        cleaned = apply_rules(found, predicted.grid.spacing_mm, task.labels, rules)
        tables.append({t.name: _dice(cleaned, truth, t.values, keep) for t in task.labels.targets})
    return tables


def _dice(found: NDArray[Any], truth: NDArray[Any], values: tuple[int, ...], keep: NDArray[np.bool_] | None) -> float:
    ours, theirs = np.isin(found, values), np.isin(truth, values)
    return dice(ours, theirs) if keep is None else dice(ours & keep, theirs & keep)


def _means(tables: list[Dices], labels: Labels) -> Dices:
    """Mean over cases that have the label, or in which it was found; nan where there is none."""
    means = {}
    for name in labels.names:
        values = [t[name] for t in tables if not np.isnan(t[name])]
        means[name] = float(np.mean(values)) if values else float("nan")
    return means


def _gain(before: Dices, after: Dices) -> float:
    return float(np.nansum([after[name] - before[name] for name in before]))


def _no_worse(before: Dices, after: Dices) -> bool:
    # A label that vanished from every case has no mean any more; it is worse where it was found before.
    return all(np.isnan(before[n]) or after[n] >= before[n] - _LOSS for n in before)


def _known(means: Dices) -> dict[str, float | None]:
    return {name: None if np.isnan(value) else round(value, 5) for name, value in means.items()}


def peak_bytes(pairs: Sequence[Pair]) -> int:
    """Memory that the largest case takes, told from the headers that can be read."""
    largest = 0
    for _, prediction, _ in pairs:
        try:
            largest = max(largest, prod(read_header(prediction).grid.shape))
        except CaseError:
            continue
    return 40 * largest
