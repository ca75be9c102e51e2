"""The outer folds' scores brought together: one result, and one row for each test case and label."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from segpipe.artefact import write_atomically
from segpipe.comparison.schema import ALL_LABELS
from segpipe.crossvalidation.folder import CrossvalFolder
from segpipe.crossvalidation.schema import (
    Bin,
    Calibration,
    CrossvalDesign,
    CrossvalResult,
    CrossvalSplits,
    OuterFold,
    Selection,
)
from segpipe.crossvalidation.statistics import paired_tests, spread, spreads
from segpipe.evaluation.reliability import CaseReliability
from segpipe.evaluation.schema import CaseScores, Evaluation
from segpipe.fingerprint.schema import Fingerprint
from segpipe.graph import Standing
from segpipe.metrics.calibration import Counts
from segpipe.preprocessing.schema import PreprocessedIndex

WINNER = "winner"
NAME_BETWEEN = " + "


@dataclass
class Pooled:
    """What the studies left behind."""

    scores: dict[str, tuple[CaseScores, ...]] = field(default_factory=dict)
    """Of the test cases, by outer fold."""
    folders: dict[str, Path] = field(default_factory=dict)
    """Where each outer fold's segmentations lie."""
    candidates: dict[str, dict[str, tuple[CaseScores, ...]]] = field(default_factory=dict)
    """The same by each candidate, by outer fold."""
    reliability: dict[str, list[CaseReliability]] = field(default_factory=dict)
    """Of the test cases, by outer fold."""
    selections: dict[str, Selection] = field(default_factory=dict)
    """By study."""
    failed: dict[str, str] = field(default_factory=dict)
    """Cases that were lost on the way, with the reasons."""

    @property
    def cases(self) -> list[CaseScores]:
        """Every score of a test case."""
        return [case for scores in self.scores.values() for case in scores]


def pool(
    folder: CrossvalFolder, design: CrossvalDesign, splits: CrossvalSplits, found: Mapping[str, Standing]
) -> Pooled:
    """Read what the studies left behind, as far as they got."""
    measured = Fingerprint.read(folder.workspace.fingerprint)
    pooled = Pooled(failed={case: f"left out: {reason}" for case, reason in measured.left_out.items()})
    for study in splits.studies:
        place = folder.study(study.name)
        for file in sorted((place.root / "preprocessed").glob("*.json")):
            lost = PreprocessedIndex.read(file).failed
            pooled.failed |= {f"{case} ({study.name})": f"not trained on: {reason}" for case, reason in lost.items()}
        if found[f"{study.name}/select"].state == "done":
            pooled.selections[study.name] = Selection.read(place.selection)
        if study.test:
            _take_test(pooled, folder, design, study, found)
    if not design.nested and "final" in pooled.selections:
        _take_inner(pooled, folder, design, splits, found)
    return pooled


def _take_test(
    pooled: Pooled, folder: CrossvalFolder, design: CrossvalDesign, study: OuterFold, found: Mapping[str, Standing]
) -> None:
    place = folder.study(study.name)
    if found[f"{study.name}/test"].state != "done":
        reason = found[f"{study.name}/test"].reason or "it is not finished"
        pooled.failed |= dict.fromkeys(study.test, f"{study.name}: no prediction: {reason}")
        return
    evaluation = Evaluation.read(place.test(WINNER) / "evaluation.json")
    pooled.scores[study.name] = evaluation.cases
    pooled.folders[study.name] = place.test(WINNER)
    pooled.failed |= {case: f"{study.name}: {reason}" for case, reason in evaluation.failed.items()}
    files = [place.test(WINNER) / "calibration" / f"{case}.json" for case in study.test]
    pooled.reliability[study.name] = [CaseReliability.read(file) for file in files if file.is_file()]
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
    texts = [c.text for c in design.candidates]
    for number, candidate in enumerate(design.candidates):
        for k in range(len(splits.final.inner)):
            if found[f"final/train_{number}_fold_{k}"].state != "done":
                continue
            variant = _variant_of(place.candidate(number))
            at = place.workspace.place(candidate.configuration, variant, k)
            evaluation = Evaluation.read(place.workspace.evaluation / at.with_suffix(".json"))
            pooled.candidates.setdefault(candidate.text, {})[f"fold_{k}"] = evaluation.cases
            if winner == (candidate.text,):
                pooled.scores[f"fold_{k}"] = evaluation.cases
                pooled.folders[f"fold_{k}"] = place.workspace.predictions / at
                pooled.failed |= {case: f"fold_{k}: {reason}" for case, reason in evaluation.failed.items()}
    if len(winner) > 1:
        for k in range(len(splits.final.inner)):
            at = place.ensemble(tuple(texts.index(name) for name in winner), k)
            evaluation = Evaluation.read(at / "evaluation.json")
            pooled.scores[f"fold_{k}"], pooled.folders[f"fold_{k}"] = evaluation.cases, at
            pooled.failed |= {case: f"fold_{k}: {reason}" for case, reason in evaluation.failed.items()}


def _variant_of(path: Path) -> str:
    import json

    return str(json.loads(path.read_text())["variant"])


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
    flat = {name: [case for scores in folds.values() for case in scores] for name, folds in pooled.candidates.items()}
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
        tests=paired_tests(flat, groups),
        chosen={name: selection.winner for name, selection in pooled.selections.items()},
        n_missed=sum(score.status == "missed" for case in pooled.cases for score in case.labels.values()),
        failed=dict(sorted(pooled.failed.items())),
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
        study = name if name in pooled.selections else "final"
        chosen = NAME_BETWEEN.join(pooled.selections[study].winner)
        counted = {case.case: case for case in pooled.reliability.get(name, [])}
        for case in scores:
            row = {"repeat": repeats.get(name, 0), "fold": name, "case": case.case, "patient": splits.groups[case.case]}
            for label, score in case.labels.items():
                said = counted[case.case].counts(label) if case.case in counted else None
                ece = said.expected_error() if said is not None and said.n.sum() else None
                values = {k: _written(v) for k, v in score.model_dump().items()}
                writer.writerow({**row, "label": label, **values, "ece": _written(ece), "chosen": chosen})
    for lost, reason in pooled.failed.items():
        fold = reason.partition(":")[0] if reason.partition(":")[0] in repeats else ""
        writer.writerow(
            {
                "repeat": repeats.get(fold, 0),
                "fold": fold,
                "case": lost,
                "patient": splits.groups.get(lost, ""),
                "status": "failed",
                "reason": reason,
            }
        )
    write_atomically(path, buffer.getvalue().encode())


def _written(value: object) -> object:
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else value
