"""The stage: artefacts in, one self-contained page out."""

import re
import zipfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from segpipe.core.labels import Labels
from segpipe.core.regular import lies, regular
from segpipe.core.workspace import FoldFolder, Workspace
from segpipe.dataset.fingerprint.schema import Fingerprint
from segpipe.dataset.schema import Dataset
from segpipe.errors import ArtefactError
from segpipe.evaluation.comparison import ALL_LABELS
from segpipe.evaluation.schema import CaseScores, Evaluation
from segpipe.evaluation.score import case_value
from segpipe.io.formats import output_ending
from segpipe.planning.schema import Plan
from segpipe.reporting.figures import as_data_url, overlay, training_curve
from segpipe.reporting.page import fill_page
from segpipe.training.schema import TrainingRecord

_N_EXAMPLES = 3
_FOLD_FILE = re.compile(r"fold_(\d+)\.json")


@dataclass(frozen=True)
class FoldPage:
    """What the page shows of one fold."""

    record: TrainingRecord
    evaluation: Evaluation
    plan: Plan | None
    """The plan that it was trained by; None where it is nowhere any more."""
    problems: list[tuple[str, str]]
    overlays: list[str]
    curve: str | None


def scored_places(workspace: Workspace, fold: int | None = None) -> list[Path]:
    """Return the places of the scored folds, sorted by configuration, variant and fold; of one fold where it is asked for.

    Raises
    ------
    ArtefactError
        If nothing has been evaluated, or not this fold.
    """
    found = {file: _FOLD_FILE.fullmatch(file.name) for file in workspace.evaluation.glob("*/*/fold_*.json")}
    scored = {file: int(match[1]) for file, match in found.items() if match}
    if not scored:
        raise ArtefactError(f"{workspace.evaluation}: nothing has been evaluated; run `segpipe run` first")
    chosen = [file for file, number in scored.items() if fold in (None, number)]
    if not chosen:
        numbers = ", ".join(str(number) for number in sorted(set(scored.values())))
        raise ArtefactError(
            f"{workspace.evaluation}: fold {fold} has not been evaluated, only {numbers}; run `segpipe run` with --fold {fold} first"
        )
    chosen.sort(key=lambda file: (file.parent, scored[file]))
    return [file.relative_to(workspace.evaluation).with_suffix("") for file in chosen]


def report(workspace: Workspace, places: Sequence[Path], fingerprint: Fingerprint | None = None) -> Path:
    """Write report/index.html about the folds at some places, with their figures beside their records.

    Parameters
    ----------
    workspace : Workspace
    places : sequence of Path
        ``<configuration>/<variant>/fold_<k>`` of each fold, as :func:`scored_places` finds them.
    fingerprint : Fingerprint, optional
        Measurements of the dataset; read unless given.
    """
    fingerprint = fingerprint or Fingerprint.read(workspace.fingerprint)
    folds = [_fold_page(workspace, place, fingerprint) for place in places]
    plans = {page.record.plan_digest: page.plan for page in folds}
    fill_page(workspace.report, "report.html", dataset_name=fingerprint.dataset_name, folds=folds, plans=plans)
    return workspace.report


def _fold_page(workspace: Workspace, place: Path, fingerprint: Fingerprint) -> FoldPage:
    fold = FoldFolder(workspace.root / "models" / place)
    record = TrainingRecord.read(fold.record)
    evaluation = Evaluation.read(workspace.evaluation / place.with_suffix(".json"))
    plan = _plan_of(workspace, record)
    if plan is not None:
        draw_curves(fold, plan)
    examples = fold.examples or (
        [] if plan is None else draw_examples(workspace, place, Dataset.read(workspace.dataset))
    )
    return FoldPage(
        record=record,
        evaluation=evaluation,
        plan=plan,
        problems=_problems(fingerprint, evaluation),
        overlays=[as_data_url(picture) for picture in examples],
        curve=as_data_url(fold.curves) if lies(fold.curves) else None,
    )


def _plan_of(workspace: Workspace, record: TrainingRecord) -> Plan | None:
    """Return the plan that a fold was trained by: beside the fold, or in the workspace where an older version trained it."""
    fold = workspace.fold(record.configuration, record.variant, record.fold)
    for path in (fold.plan, workspace.plan_of(record.variant), workspace.previous_plan):
        plan = Plan.read(path) if lies(path) else None
        if plan is not None and plan.digest() == record.plan_digest:
            return plan
    return _plan_in(workspace.model(record.configuration, record.variant), record.plan_digest)


def _plan_in(model: Path, digest: str) -> Plan | None:
    """Return the plan that a model file holds, where it has a digest."""
    with suppress(OSError, zipfile.BadZipFile, KeyError, ArtefactError), zipfile.ZipFile(regular(model)) as archive:
        plan = Plan.from_json(archive.read("plan.json"), advice="train again")
        return plan if plan.digest() == digest else None
    return None


def draw_curves(fold: FoldFolder, plan: Plan) -> Path:
    """Draw the curves of a training, finished or not, beside its log."""
    return training_curve(fold.log, plan.labels.names, plan.training.loss, fold.curves)


def draw_examples(workspace: Workspace, place: Path, dataset: Dataset) -> list[Path]:
    """Draw the worst, the median and the best held-out case by mean Dice beside the fold's record."""
    fold = FoldFolder(workspace.root / "models" / place)
    for old in fold.examples:
        old.unlink()
    evaluation = Evaluation.read(workspace.evaluation / place.with_suffix(".json"))
    plan = _plan_of(workspace, TrainingRecord.read(fold.record))
    if plan is None:
        return []
    predictions = dict.fromkeys((c.case for c in evaluation.cases), workspace.predictions / place)
    return draw_extremes(evaluation.cases, dataset, plan.labels, predictions, fold.root)


def _problems(fingerprint: Fingerprint, evaluation: Evaluation) -> list[tuple[str, str]]:
    # Notes say what was believed; a case is neither lost nor doubtful by them.
    found = [(f.case, f"{f.rule}: {f.message}") for f in fingerprint.findings if f.severity != "note"]
    return [*found, *((case, f"not scored: {reason}") for case, reason in evaluation.failed.items())]


def draw_extremes(
    scored: Sequence[CaseScores], dataset: Dataset, labels: Labels, predictions: Mapping[str, Path], folder: Path
) -> list[Path]:
    """Draw the worst, the median and the best of some cases by mean Dice into a folder; ``predictions`` says in which folder each lies.

    A case to which no label applies has no mean and is not drawn.
    """
    dice = {scores.case: case_value(scores, ALL_LABELS, "dice") for scores in scored}
    means = {case: mean for case, mean in dice.items() if mean is not None}
    ranked = sorted(means, key=means.__getitem__)
    if not ranked:
        return []
    picks = sorted({0, len(ranked) // 2, len(ranked) - 1})[:_N_EXAMPLES]
    names = {0: "worst", len(ranked) - 1: "best"}
    cases = {c.id: c for c in dataset.cases}
    drawn = []
    for number, pick in enumerate(picks, start=1):
        case, name = cases[ranked[pick]], names.get(pick, "median")
        if case.label is None:
            continue
        image = case.images[0].path
        title = f"{case.id}: {name} case, mean Dice {means[case.id]:.3f}"
        prediction = predictions[case.id] / f"{case.id}{output_ending(image)}"
        file = folder / f"example_{number}_{name}_{case.id}.png"
        drawn.append(overlay(image, prediction, case.label.path, labels, title, file))
    return drawn
