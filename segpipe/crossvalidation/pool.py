"""The outer folds' scores brought together: one result, and one row for each test case and label."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from segpipe.core.regular import lies
from segpipe.core.whole import write_atomically
from segpipe.crossvalidation.design import n_candidates
from segpipe.crossvalidation.folder import WINNER, CrossvalFolder
from segpipe.crossvalidation.schema import (
    FINAL,
    Bin,
    Calibration,
    CandidatePlan,
    CrossvalDesign,
    CrossvalResult,
    CrossvalSplits,
    Lost,
    OuterFold,
    Selection,
)
from segpipe.crossvalidation.statistics import paired_tests, spread, spreads
from segpipe.dataset.fingerprint.schema import Fingerprint
from segpipe.evaluation.comparison import ALL_LABELS
from segpipe.evaluation.reliability import CaseReliability
from segpipe.evaluation.schema import CaseScores, Evaluation
from segpipe.execution.graph import Standing
from segpipe.metrics.calibration import Counts
from segpipe.preprocessing.schema import PreprocessedIndex

NAME_BETWEEN = " + "


@dataclass
class Pooled:
    """What the studies left behind."""

    scores: dict[str, tuple[CaseScores, ...]] = field(default_factory=dict)
    """Scores of the test cases, by outer fold."""
    folders: dict[str, Path] = field(default_factory=dict)
    """Where each outer fold's segmentations lie."""
    candidates: dict[str, dict[str, tuple[CaseScores, ...]]] = field(default_factory=dict)
    """Scores of the same cases by each candidate, by outer fold."""
    reliability: dict[str, list[CaseReliability]] = field(default_factory=dict)
    """Reliability of the test cases, by outer fold."""
    selections: dict[str, Selection] = field(default_factory=dict)
    """By study."""
    lost: list[Lost] = field(default_factory=list)

    @property
    def cases(self) -> list[CaseScores]:
        """Every score of a test case."""
        return [case for scores in self.scores.values() for case in scores]


def pool(
    folder: CrossvalFolder, design: CrossvalDesign, splits: CrossvalSplits, found: Mapping[str, Standing]
) -> Pooled:
    """Read what the studies left behind, as far as they got."""
    left_out = Fingerprint.read(folder.workspace.fingerprint).left_out
    pooled = Pooled(lost=[Lost(study="", case=c, stage="left out", reason=why) for c, why in sorted(left_out.items())])
    for study in splits.studies:
        place = folder.study(study.name)
        for file in sorted((place.root / "jobs").glob("prepare_*/index.json")):
            failed = PreprocessedIndex.read(file).failed
            pooled.lost += [Lost(study=study.name, case=c, stage="training", reason=why) for c, why in failed.items()]
        if found[f"{study.name}/select"].state == "done":
            pooled.selections[study.name] = Selection.read(place.selection)
        if study.test:
            _take_test(pooled, folder, design, study, found)
    if not design.nested and FINAL in pooled.selections:
        _take_inner(pooled, folder, design, splits, found)
    return pooled


def _take_test(
    pooled: Pooled, folder: CrossvalFolder, design: CrossvalDesign, study: OuterFold, found: Mapping[str, Standing]
) -> None:
    place = folder.study(study.name)
    if found[f"{study.name}/test"].state != "done":
        reason = found[f"{study.name}/test"].reason or "it is not finished"
        pooled.lost += [Lost(study=study.name, case=case, stage="test", reason=reason) for case in study.test]
        return
    evaluation = Evaluation.read(place.test(WINNER) / "evaluation.json")
    pooled.scores[study.name] = evaluation.cases
    pooled.folders[study.name] = place.test(WINNER)
    _take_failed(pooled, study.name, evaluation)
    files = [place.test(WINNER) / "calibration" / f"{case}.json" for case in study.test]
    pooled.reliability[study.name] = [CaseReliability.read(file) for file in files if lies(file)]
    for number, candidate in enumerate(design.candidates):
        standing = found.get(f"{study.name}/test_candidate_{number}")
        if standing is not None and standing.state == "done":
            scores = Evaluation.read(place.test(str(number)) / "evaluation.json").cases
            pooled.candidates.setdefault(candidate.text, {})[study.name] = scores


def _take_inner(
    pooled: Pooled,
    folder: CrossvalFolder,
    design: CrossvalDesign,
    splits: CrossvalSplits,
    found: Mapping[str, Standing],
) -> None:
    """Without nesting the winner is measured where it was chosen."""
    assert splits.final is not None
    place = folder.study(splits.final.name)
    winner = pooled.selections[splits.final.name].winner
    numbers: dict[str, int] = {}
    for number in range(n_candidates(design)):
        folds = range(len(splits.final.inner))
        if any(found[f"{FINAL}/train_{number}_fold_{k}"].state != "done" for k in folds):
            continue
        chosen = CandidatePlan.read(place.candidate(number))
        name = chosen.candidate.text
        numbers[name] = number
        for k in folds:
            at = place.workspace.place(chosen.candidate.configuration, chosen.variant, k)
            evaluation = Evaluation.read(place.workspace.evaluation / at.with_suffix(".json"))
            pooled.candidates.setdefault(name, {})[f"fold_{k}"] = evaluation.cases
            if winner == (name,):
                _take(pooled, f"fold_{k}", evaluation, place.workspace.predictions / at)
    if len(winner) > 1:
        for k in range(len(splits.final.inner)):
            at = place.ensemble(tuple(numbers[name] for name in winner), k)
            _take(pooled, f"fold_{k}", Evaluation.read(at / "evaluation.json"), at)


def _take(pooled: Pooled, fold: str, evaluation: Evaluation, folder: Path) -> None:
    pooled.scores[fold], pooled.folders[fold] = evaluation.cases, folder
    _take_failed(pooled, fold, evaluation)


def _take_failed(pooled: Pooled, fold: str, evaluation: Evaluation) -> None:
    failed = evaluation.failed.items()
    pooled.lost += [Lost(study=fold, case=case, stage="test", reason=reason) for case, reason in failed]


def summarise(
    folder: CrossvalFolder,
    design: CrossvalDesign,
    splits: CrossvalSplits,
    pooled: Pooled,
    found: Mapping[str, Standing],
) -> CrossvalResult:
    """Every statistic of the pooled scores."""
    labels = Fingerprint.read(folder.workspace.fingerprint).labels
    groups = splits.groups
    return CrossvalResult(
        dataset_name=design.dataset_name,
        design_digest=design.digest(),
        splits_digest=splits.digest(),
        nested=design.nested,
        labels=labels,
        tolerance_mm=design.tolerance_mm,
        n_cases=len({case.case for case in pooled.cases}),
        n_patients=len({groups[case.case] for case in pooled.cases}),
        n_repeats=splits.n_repeats,
        scores=spreads(pooled.scores, groups, labels.names),
        calibration=_calibration(pooled, labels.names),
        candidates={name: spread(folds, groups, ALL_LABELS, "dice") for name, folds in pooled.candidates.items()},
        tests=paired_tests(pooled.candidates, groups),
        chosen={name: selection.winner for name, selection in pooled.selections.items()},
        n_missed=sum(score.status == "missed" for case in pooled.cases for score in case.labels.values()),
        lost=tuple(pooled.lost),
        unfinished={job: s.reason or s.state for job, s in found.items() if s.state in ("failed", "blocked")},
    )


def _calibration(pooled: Pooled, names: tuple[str, ...]) -> dict[str, Calibration]:
    cases = [case for found in pooled.reliability.values() for case in found]
    calibration = {}
    for name in names:
        counted = [counts for case in cases if name in case.bins and (counts := case.counts(name)).n.sum()]
        if not counted:
            continue
        total = Counts.none()
        for counts in counted:
            total = total + counts.weighing_one()
        bins = tuple(
            Bin(share=float(n / total.n.sum()), probability=float(p / n), frequency=float(y / n))
            for n, p, y in zip(total.n, total.probability, total.present, strict=True)
            if n
        )
        calibration[name] = Calibration(ece=total.expected_error(), n_cases=len(counted), bins=bins)
    return calibration


_COLUMNS = (
    "repeat", "fold", "case", "patient", "label", "status", "dice", "nsd", "hd95_mm", "volume_prediction_ml", "volume_reference_ml",
    "ece", "chosen", "reason",
)  # fmt: skip


def write_table(path: Path, splits: CrossvalSplits, pooled: Pooled) -> None:
    """Write a row for each test case and label; a case without a score has a row that says why."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, _COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    repeats = {fold.name: fold.repeat for fold in splits.outer}
    for name, scores in pooled.scores.items():
        study = name if name in pooled.selections else FINAL
        chosen = NAME_BETWEEN.join(pooled.selections[study].winner)
        counted = {case.case: case for case in pooled.reliability.get(name, [])}
        for case in scores:
            row = {"repeat": repeats.get(name, 0), "fold": name, "case": case.case, "patient": splits.groups[case.case]}
            for label, score in case.labels.items():
                # A label that no training case of its study had was given no probability.
                bins = counted.get(case.case)
                said = bins.counts(label) if bins is not None and label in bins.bins else None
                ece = said.expected_error() if said is not None and said.n.sum() else None
                values = {k: _written(v) for k, v in score.model_dump().items()}
                writer.writerow({**row, "label": label, **values, "ece": _written(ece), "chosen": chosen})
    for lost in pooled.lost:
        # What one study did not train on may well be tested in another.
        if lost.stage != "training":
            patient = splits.groups.get(lost.case, "")
            row = {"repeat": repeats.get(lost.study, 0), "fold": lost.study, "case": lost.case, "patient": patient}
            writer.writerow(
                {**row, "status": lost.stage if lost.stage == "left out" else "failed", "reason": lost.reason}
            )
    write_atomically(path, buffer.getvalue().encode())


def _written(value: object) -> object:
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else value
