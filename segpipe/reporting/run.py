"""The stage: artefacts in, one self-contained page out."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from segpipe.core.labels import Labels
from segpipe.core.workspace import FoldFolder, Workspace
from segpipe.dataset.fingerprint.schema import Fingerprint
from segpipe.dataset.schema import Dataset
from segpipe.errors import ArtefactError
from segpipe.evaluation.schema import CaseScores, Evaluation
from segpipe.io.formats import output_ending
from segpipe.planning.schema import Plan
from segpipe.reporting.figures import as_data_url, overlay, training_curve
from segpipe.reporting.page import fill_page
from segpipe.training.schema import TrainingRecord

_N_EXAMPLES = 3


def report(workspace: Workspace) -> Path:
    """Write report/index.html from the latest evaluation, with its figures beside it.

    Raises
    ------
    ArtefactError
        If nothing has been evaluated.
    """
    evaluations = sorted(workspace.evaluation.rglob("fold_*.json"), key=lambda p: p.stat().st_mtime_ns)
    if not evaluations:
        raise ArtefactError(f"{workspace.evaluation}: nothing has been evaluated; run `segpipe run` first")
    place = evaluations[-1].relative_to(workspace.evaluation).with_suffix("")
    evaluation = Evaluation.read(evaluations[-1])
    fold = FoldFolder(workspace.root / "models" / place)
    plan = Plan.read(workspace.plan_of(place.parts[1]))
    examples = fold.examples or draw_examples(workspace, place, Dataset.read(workspace.dataset))
    fill_page(
        workspace.report,
        "report.html",
        plan=plan,
        record=TrainingRecord.read(fold.record),
        evaluation=evaluation,
        problems=_problems(Fingerprint.read(workspace.fingerprint), evaluation),
        overlays=[as_data_url(p) for p in examples],
        curve=as_data_url(draw_curves(fold, plan.labels.names)),
    )
    return workspace.report


def draw_curves(fold: FoldFolder, names: tuple[str, ...]) -> Path:
    """Draw the curves of a training, finished or not, beside its log."""
    return training_curve(fold.log, names, fold.curves)


def draw_examples(workspace: Workspace, place: Path, dataset: Dataset) -> list[Path]:
    """Draw the worst, the median and the best held-out case by mean Dice beside the fold's record."""
    fold = FoldFolder(workspace.root / "models" / place)
    for old in fold.examples:
        old.unlink()
    evaluation = Evaluation.read(workspace.evaluation / place.with_suffix(".json"))
    plan = Plan.read(workspace.plan_of(place.parts[1]))
    predictions = dict.fromkeys((c.case for c in evaluation.cases), workspace.predictions / place)
    return draw_extremes(evaluation.cases, dataset, plan.labels, predictions, fold.root)


def _problems(fingerprint: Fingerprint, evaluation: Evaluation) -> list[tuple[str, str]]:
    found = [(f.case, f"{f.rule}: {f.message}") for f in fingerprint.findings]
    return [*found, *((case, f"not scored: {reason}") for case, reason in evaluation.failed.items())]


def draw_extremes(
    scored: Sequence[CaseScores], dataset: Dataset, labels: Labels, predictions: Mapping[str, Path], folder: Path
) -> list[Path]:
    """Draw the worst, the median and the best of some cases by mean Dice into a folder; ``predictions`` says in which folder each lies."""
    ranked = sorted(scored, key=_mean_dice)
    if not ranked:
        return []
    picks = sorted({0, len(ranked) // 2, len(ranked) - 1})[:_N_EXAMPLES]
    names = {0: "worst", len(ranked) - 1: "best"}
    cases = {c.id: c for c in dataset.cases}
    drawn = []
    for number, pick in enumerate(picks, start=1):
        scores, name = ranked[pick], names.get(pick, "median")
        case = cases[scores.case]
        if case.label is None:
            continue
        image = case.images[0].path
        title = f"{scores.case}: {name} case, mean Dice {_mean_dice(scores):.3f}"
        prediction = predictions[case.id] / f"{case.id}{output_ending(image)}"
        file = folder / f"example_{number}_{name}_{case.id}.png"
        drawn.append(overlay(image, prediction, case.label.path, labels, title, file))
    return drawn


def _mean_dice(scores: CaseScores) -> float:
    values = [s.dice for s in scores.labels.values() if s.dice is not None]
    return sum(values) / len(values) if values else 1.0
