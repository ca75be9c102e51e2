"""Cases of a dataset, predicted by trained models and scored against their references."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from segpipe.core.labels import Labels
from segpipe.core.system_names import below
from segpipe.dataset.schema import Case
from segpipe.evaluation.run import evaluate
from segpipe.evaluation.schema import Evaluation
from segpipe.execution.torch_state import training_state
from segpipe.inference.engines.choose import network_cache
from segpipe.inference.inputs import InputCase
from segpipe.inference.predictor import Predictor, PredictorOptions
from segpipe.inference.run import Onlooker, predict
from segpipe.inference.schema import PredictionRow
from segpipe.io.formats import output_ending
from segpipe.planning.schema import Plan
from segpipe.workflows.project import Project


@dataclass(frozen=True)
class Predicted:
    """Cases with what models make of them."""

    cases: Sequence[Case]
    folder: Path
    rows: Sequence[PredictionRow] = ()
    plan: Plan | None = None
    """Plan of the (first) model."""
    failed: dict[str, str] = field(default_factory=dict)
    """Cases without a prediction, with the reasons."""


@dataclass(frozen=True)
class Models:
    """Trained models, and how they are applied."""

    paths: tuple[Path, ...]
    folds: tuple[str, ...] = ()
    tta: bool = True
    postprocess: bool = False
    """Off where rules are chosen on these very predictions."""


def output_of(case: Case, folder: Path) -> Path:
    """Where a case's segmentation lies in a folder."""
    return below(folder, f"{case.id}{output_ending(case.images[0].path)}")


def inputs_of(cases: Sequence[Case], folder: Path) -> list[InputCase]:
    """Return the cases as prediction is given them."""
    return [InputCase(c.id, tuple(i.path for i in c.images), output_of(c, folder)) for c in cases]


def predict_cases(
    project: Project,
    cases: Sequence[Case],
    models: Models,
    folder: Path,
    *,
    title: str = "predicting",
    resume: bool = True,
    onlooker: Onlooker | None = None,
    lost: Mapping[str, str] | None = None,
) -> Predicted:
    """Predict cases into a folder; a case that fails keeps its reason. What an earlier stage ``lost`` is not read, and keeps its own."""
    before = {c.id: lost[c.id] for c in cases if c.id in lost} if lost else {}
    cases = [c for c in cases if c.id not in before]
    options = PredictorOptions(models.folds, models.tta, postprocess=models.postprocess, cache=network_cache())
    predictor = Predictor.load(models.paths, project.runtime, options)
    with (
        # A part of a training command: as reproducible as the training itself.
        training_state(project.runtime.device, deterministic=project.runtime.deterministic),
        project.watch.counting(title, len(cases)) as step,
    ):
        rows = predict(
            inputs_of(cases, folder), predictor, folder / "predictions.jsonl",
            resume=resume, on_case=lambda row: step(row.case), onlooker=onlooker, note=project.watch.note,
        )  # fmt: skip
    for row in rows:
        for doubt in row.doubts:
            project.watch.note(f"{row.case}: {doubt}")
    failed = {row.case: row.reason or "" for row in rows if row.status == "failed"}
    return Predicted(cases, folder, rows, predictor.plan, before | failed)


def score_cases(
    project: Project, predicted: Predicted, labels: Labels, *, tolerance_mm: float, title: str = "scoring"
) -> Evaluation:
    """Score predicted cases that have a reference; those without a prediction are reported as failed."""
    pairs = [
        (c.id, output_of(c, predicted.folder), c.label.path)
        for c in predicted.cases
        if c.label and c.id not in predicted.failed
    ]
    with project.watch.counting(title, len(pairs)) as step:
        return evaluate(
            pairs, labels,
            missing=predicted.failed, tolerance_mm=tolerance_mm, workers=project.workers, on_case=step,
        )  # fmt: skip


def predict_and_score(
    project: Project,
    cases: Sequence[Case],
    models: Models,
    folder: Path,
    *,
    tolerance_mm: float,
    labels: Labels | None = None,
    **how: Any,
) -> tuple[Predicted, Evaluation]:
    """Predict cases into a folder, and score them by the models' labels unless others are given.

    Parameters
    ----------
    project : Project
    cases : sequence of Case
    models : Models
    folder : Path
        Folder of the segmentations.
    tolerance_mm : float
        Tolerance of the normalised surface Dice.
    labels : Labels, optional
    **how
        As :func:`predict_cases` takes it.
    """
    predicted = predict_cases(project, cases, models, folder, **how)
    assert predicted.plan is not None
    return predicted, score_cases(project, predicted, labels or predicted.plan.labels, tolerance_mm=tolerance_mm)
