"""The stage: predictions and references in, scores out."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from segpipe.core.given import Given, PassedOver
from segpipe.core.labels import Labels
from segpipe.core.volume import Volume
from segpipe.dataset.check import label_problems, value_counts
from segpipe.dataset.entries import entries_of
from segpipe.dataset.grids import LabelFile, labels_exactly_on
from segpipe.dataset.load import read_label_file
from segpipe.errors import CaseError, DatasetError, UsageError
from segpipe.evaluation.schema import CaseScores, Evaluation
from segpipe.evaluation.score import SCORED_AS_OF, mean_over_labels, score_case, summarise_label
from segpipe.execution import processes
from segpipe.execution.memory import BYTES_A_LABEL_VOXEL
from segpipe.execution.processes import Workers
from segpipe.io.formats import most_voxels, stem_of
from segpipe.metrics.surface import SurfaceUnit

Pair = tuple[str, Path, Path]


@dataclass(frozen=True)
class Matched:
    """Predictions and references of one name."""

    pairs: list[Pair]
    twice: dict[str, str]
    """References whose name several files have, with the reasons."""
    missing: dict[str, str]
    """References without a prediction, with the reasons."""
    given: tuple[Given, ...]
    """Counts of the predictions and of the references' folder, where something is not used."""


def evaluate(
    pairs: list[Pair],
    labels: Labels | None,
    *,
    missing: dict[str, str] | None = None,
    given: tuple[Given, ...] = (),
    tolerance_mm: float = 1.0,
    nsd_unit: SurfaceUnit = "voxels",
    workers: Workers = None,
    on_case: Callable[[str], None] | None = None,
) -> Evaluation:
    """Score predictions against references.

    Parameters
    ----------
    pairs : list of (case, prediction, reference)
    labels : Labels, or None
        Labels or regions to score, and the reference value of voxels that are not; None takes every value but 0 that is found.
    missing : dict of str to str, optional
        Cases that are known to have no prediction, with the reasons; they are reported as failed.
    given : tuple of Given
        What the user gave beside the pairs; it is kept with the scores.
    tolerance_mm : float
        Tolerance of the normalised surface Dice, in mm.
    nsd_unit : "voxels" or "area"
        What the normalised surface Dice counts.
    workers : int or executor, optional
        Most worker processes, or whose.
    on_case : callable, optional
        Called with each case id when the case is done.
    """
    declared = labels
    failed = dict(missing or {})
    peak = _pair_bytes(pairs)
    if labels is None:
        labels = _labels_found(pairs, workers, peak, failed)
        pairs = [p for p in pairs if p[0] not in failed]
    scores: list[CaseScores] = []
    values: list[_Values] = []
    score = partial(_score_pair, labels=labels, declared=declared, tolerance_mm=tolerance_mm, nsd_unit=nsd_unit)
    for outcome in processes.map_cases(
        score,
        pairs,
        workers=workers,
        bytes_each=peak,
    ):
        if outcome.value is None:
            failed[outcome.item[0]] = outcome.failure or "no result"
        else:
            scores.append(outcome.value[0])
            values.append(outcome.value[1])
        if on_case:
            on_case(outcome.item[0])
    scores.sort(key=lambda s: s.case)
    by_label = {name: summarise_label([s.labels[name] for s in scores]) for name in labels.names}
    return Evaluation(
        scored_as_of=SCORED_AS_OF,
        tolerance_mm=tolerance_mm,
        nsd_unit=nsd_unit,
        labels={t.name: t.values for t in labels.targets},
        ignore=labels.ignore,
        cases=tuple(scores),
        by_label=by_label,
        mean_dice=mean_over_labels([s.mean_dice for s in by_label.values()]),
        mean_nsd=mean_over_labels([s.mean_nsd for s in by_label.values()]),
        mean_hd95_mm=mean_over_labels([s.mean_hd95_mm for s in by_label.values()]),
        n_missed=sum(s.n_missed for s in by_label.values()),
        without_cases=tuple(name for name, s in by_label.items() if not s.n_applicable),
        failed=dict(sorted(failed.items())),
        given=(*given, *_values_given(values, declared)),
    )


def match_pairs(predictions: Path, references: Path) -> Matched:
    """Match two files, or the files of two folders by name; what has no partner is named.

    Raises
    ------
    UsageError
        If one is a file and the other a folder.
    DatasetError
        If there is nothing to compare.
    """
    for path in (predictions, references):
        if not path.exists():
            raise DatasetError(f"{path}: no such file or folder")
    if predictions.is_dir() != references.is_dir():
        file, folder = (predictions, references) if references.is_dir() else (references, predictions)
        raise UsageError(f"{file} is a file and {folder} is a folder; give two files, or two folders")
    if references.is_file():
        case = stem_of(references)
        return Matched([(case, predictions, references)], {}, {}, ())
    by_case, prediction_twice = _by_stem(predictions)
    # What `predict --save-uncertainty` wrote beside a segmentation is none.
    by_case = {c: f for c, f in by_case.items() if c.removesuffix("_uncertainty") not in by_case.keys() - {c}}
    reference_files, reference_twice = _by_stem(references)
    if not reference_files:
        raise DatasetError(f"{references}: no image file found")
    pairs = [(case, by_case[case], file) for case, file in reference_files.items() if case in by_case]
    if not pairs:
        raise DatasetError(
            f"{predictions}: no file has the name of a reference in {references} (such as {next(iter(reference_files))})"
        )
    twice = reference_twice | {case: why for case, why in prediction_twice.items() if case in reference_files}
    missing = {
        case: f"no prediction of this name in {predictions}"
        for case in reference_files
        if case not in by_case and case not in twice
    }
    alone = tuple(
        PassedOver(what=case, why=f"no reference of this name in {references}", a_case=True)
        for case in by_case
        if case not in reference_files
    )
    # A prediction that cannot be read is missed by its reference; what else lies beside predictions, such as a log, is none.
    counts = (
        Given(kind=f"predictions in {predictions}", n_given=len(by_case), passed_over=alone),
        entries_of(references).given,
    )
    given = tuple(count for count in counts if count.passed_over)
    return Matched([p for p in pairs if p[0] not in twice], twice, missing, given)


def labels_found(pairs: list[Pair], workers: Workers = None) -> Labels:
    """Every value but 0 of predictions and references, named by its number; pairs that cannot be read are passed over."""
    return _labels_found(pairs, workers, _pair_bytes(pairs), {})


def _by_stem(folder: Path) -> tuple[dict[str, Path], dict[str, str]]:
    """Files by name without ending, and the names that several files have."""
    files: dict[str, Path] = {}
    twice = {}
    for file in entries_of(folder).images:
        if stem_of(file) in files:
            twice[stem_of(file)] = (
                f"{folder}: {files[stem_of(file)].name} and {file.name} have one name; keep one of them"
            )
        files[stem_of(file)] = file
    return files, twice


_Counts = dict[float, int]
_Values = tuple[str, _Counts, _Counts]
"""A case, and the voxels of each value of its prediction and of its reference."""


def _read_labels(case: str, path: Path, declared: Labels | None = None) -> tuple[LabelFile, _Counts]:
    stored = read_label_file(case, path, declared)
    volume = stored.volume
    counts = value_counts(volume.array)
    problems = label_problems(counts, None)
    if problems:
        raise CaseError(f"{path}: " + "; ".join(f"{rule}: {message}" for rule, message in problems))
    return replace(stored, volume=Volume(volume.array.astype(np.int64), volume.grid)), counts


def _score_pair(
    pair: Pair, labels: Labels, declared: Labels | None, tolerance_mm: float, nsd_unit: SurfaceUnit
) -> tuple[CaseScores, _Values]:
    case, *paths = pair
    (prediction, predicted), (stored, known) = (_read_labels(case, path, declared) for path in paths)
    grid = prediction.volume.grid
    reference = labels_exactly_on(case, "prediction", grid, "reference", stored)
    scores = score_case(case, prediction.volume.array[0], reference, grid, labels, tolerance_mm, nsd_unit=nsd_unit)
    return scores, (case, predicted, known)


def _values_given(values: list[_Values], declared: Labels | None) -> tuple[Given, ...]:
    """Values of predictions and references that no declared label has; nothing where all have one, or none is declared."""
    if declared is None:
        return ()
    predicted = {case: counts for case, counts, _ in sorted(values, key=lambda v: v[0])}
    known = {case: counts for case, _, counts in sorted(values, key=lambda v: v[0])}
    sides = (_side_given("prediction", predicted, declared), _side_given("reference", known, declared))
    return tuple(given for given in sides if given.passed_over)


def _side_given(side: str, by_case: dict[str, _Counts], declared: Labels) -> Given:
    found = [(case, int(v), n) for case, counts in by_case.items() for v, n in sorted(counts.items())]
    alone = tuple(
        PassedOver(what=f"{case} ({n} voxels)", why=why)
        for case, value, n in found
        if (why := _why_not(value, side, declared))
    )
    return Given(kind=f"values in {side}s", n_given=len(found), passed_over=alone)


def _why_not(value: int, side: str, declared: Labels) -> str:
    if value not in declared.accepted:
        return f"value {value} belongs to no label; declared are {list(declared.accepted)}"
    if side == "prediction" and value == declared.ignore:
        return f"value {value} is the ignored one, which only a reference can hold"
    return ""


def _values_of(pair: Pair) -> set[int]:
    return {int(v) for path in pair[1:] for v in _read_labels(pair[0], path)[1]}


def _labels_found(pairs: list[Pair], workers: Workers, peak: int, failed: dict[str, str]) -> Labels:
    found: set[int] = set()
    for outcome in processes.map_cases(_values_of, pairs, workers=workers, bytes_each=peak):
        if outcome.value is None:
            failed[outcome.item[0]] = outcome.failure or "no result"
        else:
            found |= outcome.value
    return Labels.plain({f"label_{v}": v for v in sorted(found) if v > 0})


def _pair_bytes(pairs: list[Pair]) -> int:
    """Forecast for the largest pair: two label arrays of 8 bytes a voxel, masks and distances of the part they fill."""
    return BYTES_A_LABEL_VOXEL * most_voxels(reference for _, _, reference in pairs)
