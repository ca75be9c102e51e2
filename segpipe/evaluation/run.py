"""The stage: predictions and references in, scores out."""

from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from segpipe.core.given import Given, PassedOver
from segpipe.core.labels import Labels
from segpipe.core.volume import Volume
from segpipe.dataset.check import label_problems, value_counts
from segpipe.dataset.entries import entries_of
from segpipe.dataset.load import along_axes_of, read_labels, require_same_grid
from segpipe.errors import CaseError, DatasetError
from segpipe.evaluation.schema import CaseScores, Evaluation
from segpipe.evaluation.score import mean_over_labels, score_case, summarise_label
from segpipe.execution import processes
from segpipe.execution.memory import BYTES_A_LABEL_VOXEL
from segpipe.execution.processes import Workers
from segpipe.io.formats import most_voxels, stem_of

Pair = tuple[str, Path, Path]


def evaluate(
    pairs: list[Pair],
    labels: Labels | None,
    *,
    missing: dict[str, str] | None = None,
    given: tuple[Given, ...] = (),
    tolerance_mm: float = 1.0,
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
        Files that are not scored, as :func:`given_of` counts them.
    tolerance_mm : float
        Tolerance of the normalised surface Dice, in mm.
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
    for outcome in processes.map_cases(
        partial(_score_pair, labels=labels, declared=declared, tolerance_mm=tolerance_mm),
        pairs,
        workers=workers,
        bytes_each=peak,
    ):
        if outcome.value is None:
            failed[outcome.item[0]] = outcome.failure or "no result"
        else:
            scores.append(outcome.value)
        if on_case:
            on_case(outcome.item[0])
    scores.sort(key=lambda s: s.case)
    by_label = {name: summarise_label([s.labels[name] for s in scores]) for name in labels.names}
    return Evaluation(
        tolerance_mm=tolerance_mm,
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
        given=(*given, *_values_given(scores, labels)),
    )


def match_pairs(predictions: Path, references: Path) -> tuple[list[Pair], dict[str, str]]:
    """Match two files, or the files of two folders by name; a reference without a prediction is named with its reason.

    Raises
    ------
    DatasetError
        If there is nothing to compare.
    """
    for path in (predictions, references):
        if not path.exists():
            raise DatasetError(f"{path}: no such file or folder")
    if references.is_file():
        return [(stem_of(references), predictions, references)], {}
    by_case, prediction_twice = _by_stem(predictions)
    reference_files, reference_twice = _by_stem(references)
    if not reference_files:
        raise DatasetError(f"{references}: no image file found")
    pairs = [(case, by_case[case], file) for case, file in reference_files.items() if case in by_case]
    if not pairs:
        raise DatasetError(
            f"{predictions}: no file has the name of a reference in {references} (such as {next(iter(reference_files))})"
        )
    twice = reference_twice | {case: why for case, why in prediction_twice.items() if case in reference_files}
    return [p for p in pairs if p[0] not in twice], twice | {
        case: f"no prediction of this name in {predictions}" for case in reference_files if case not in by_case
    }


def given_of(predictions: Path, references: Path) -> tuple[Given, ...]:
    """Count the files of two folders, and name those that are not scored; nothing where all are."""
    if references.is_file() or not predictions.is_dir():
        return ()
    of_predictions, of_references = entries_of(predictions), entries_of(references)
    known = {stem_of(file) for file in of_references.images}
    predicted = {stem_of(file) for file in of_predictions.images}
    alone = tuple(
        PassedOver(what=file.name, why=f"no reference of this name in {references}", a_case=True)
        for file in of_predictions.images
        # What `predict --save-uncertainty` wrote beside a segmentation is none.
        if stem_of(file) not in known and stem_of(file).removesuffix("_uncertainty") not in predicted - {stem_of(file)}
    )
    # A log beside the predictions is none; a prediction that cannot be read is missed by its reference.
    counted = Given(kind=f"predictions in {predictions}", n_given=len(of_predictions.images), passed_over=alone)
    return tuple(given for given in (counted, of_references.given) if given.passed_over)


def _values_given(scores: list[CaseScores], labels: Labels) -> tuple[Given, ...]:
    """Count the label values of all cases, and name those that no label has."""
    cases: dict[int, list[CaseScores]] = defaultdict(list)
    for score in scores:
        for value in score.undeclared:
            cases[value].append(score)
    left = tuple(
        PassedOver(
            what=f"value {value} in {found[0].case}{f' and {len(found) - 1} more case(s)' if len(found) > 1 else ''} "
            f"({sum(s.undeclared[value][0] for s in found)} voxels predicted, {sum(s.undeclared[value][1] for s in found)} in references)",
            why="no label has this value",
        )
        for value, found in sorted(cases.items())
    )
    n_given = len(set(labels.values) - {labels.background}) + len(left)
    return (Given(kind="label values", n_given=n_given, passed_over=left),) if left else ()


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


def _read_labels(case: str, path: Path, declared: Labels | None = None) -> Volume:
    volume = read_labels(case, path, declared)
    problems = label_problems(value_counts(volume.array), None)
    if problems:
        raise CaseError(f"{path}: " + "; ".join(f"{rule}: {message}" for rule, message in problems))
    return Volume(volume.array.astype(np.int64), volume.grid)


def _score_pair(pair: Pair, labels: Labels, declared: Labels | None, tolerance_mm: float) -> CaseScores:
    case, prediction_path, reference_path = pair
    prediction, stored = (_read_labels(case, path, declared) for path in (prediction_path, reference_path))
    require_same_grid(case, "prediction", prediction.grid, "reference", stored.grid)
    reference = along_axes_of(prediction.grid, stored)
    scores = score_case(case, prediction.array[0], reference.array[0], prediction.grid, labels, tolerance_mm)
    predicted, referred = (value_counts(volume.array) for volume in (prediction, reference))
    # The background is nobody's, and so is what is left out of the reference.
    left = sorted(int(v) for v in {*predicted, *referred} if v not in labels.accepted and v != 0)
    undeclared = {v: (predicted.get(v, 0), referred.get(v, 0)) for v in left}
    return scores.model_copy(update={"undeclared": undeclared}) if undeclared else scores


def _values_of(pair: Pair) -> set[int]:
    return {int(v) for path in pair[1:] for v in np.unique(_read_labels(pair[0], path).array)}


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
