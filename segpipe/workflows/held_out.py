"""The cases that a fold held out: predicted whole, scored, and drawn beside the fold's record."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from segpipe.workflows.project import splits_of

if TYPE_CHECKING:
    from segpipe.core.progress import Watch
    from segpipe.core.workspace import Workspace
    from segpipe.dataset.schema import Case
    from segpipe.evaluation.schema import Evaluation
    from segpipe.execution.device import Runtime
    from segpipe.inference.schema import PredictionRow
    from segpipe.planning.schema import Plan
    from segpipe.preprocessing.schema import PreprocessedIndex


@dataclass(frozen=True)
class Predicted:
    """A fold's held-out cases with what its own model makes of them."""

    cases: list[Case]
    outputs: list[Path]
    rows: list[PredictionRow]

    @property
    def failed(self) -> dict[str, str]:
        """Cases without a prediction, with the reasons."""
        return {row.case: row.reason or "" for row in self.rows if row.status == "failed"}


@dataclass(frozen=True)
class HeldOut:
    """Scores of a fold's held-out cases, and where everything is."""

    evaluation: Evaluation
    predictions: Path
    evaluation_file: Path
    pictures: tuple[Path, ...] = ()
    failed: dict[str, str] = field(default_factory=dict)
    """Cases of the dataset that were lost on the way, with the stage and the reason."""


def predict_held_out(
    workspace: Workspace,
    plan: Plan,
    configuration: str,
    fold: int | str,
    runtime: Runtime,
    *,
    tta: bool,
    resume: bool,
    watch: Watch,
    folder: Path,
) -> Predicted:
    """Predict the cases that a trained fold held out into a folder, by that fold alone; the model file may hold others that saw them."""
    from segpipe.dataset.fingerprint.schema import Fingerprint
    from segpipe.dataset.schema import Dataset
    from segpipe.execution.torch_state import training_state
    from segpipe.inference.engines.choose import network_cache
    from segpipe.inference.inputs import InputCase
    from segpipe.inference.predictor import Options, Predictor
    from segpipe.inference.run import predict as stage
    from segpipe.io.formats import output_ending

    # Without post-processing: its rules are chosen on these very predictions.
    options = Options(folds=(str(fold),), tta=tta, postprocess=False, cache=network_cache())
    predictor = Predictor.load(workspace.model(configuration, plan.recipe), runtime, options)
    held_out = set(splits_of(workspace, Fingerprint.read(workspace.fingerprint)).fold(fold).validation)
    cases = [c for c in Dataset.read(workspace.dataset).cases if c.id in held_out]
    inputs = [
        InputCase(c.id, tuple(i.path for i in c.images), folder / f"{c.id}{output_ending(c.images[0].path)}")
        for c in cases
    ]
    with (
        # A part of the training command: as reproducible as the training itself.
        training_state(runtime.device, deterministic=runtime.deterministic),
        watch.counting(f"predicting the held-out cases of fold {fold}", len(inputs)) as step,
    ):
        rows = stage(inputs, predictor, folder / "predictions.jsonl", resume=resume, on_case=lambda row: step(row.case))
    for row in rows:
        for doubt in row.doubts:
            watch.note(f"{row.case}: {doubt}")
    return Predicted(cases, [i.output for i in inputs], rows)


def score_held_out(
    workspace: Workspace,
    plan: Plan,
    index: PreprocessedIndex,
    fold: int | str,
    runtime: Runtime,
    *,
    configuration: str,
    tta: bool,
    tolerance_mm: float,
    jobs: int | None,
    resume: bool,
    watch: Watch,
) -> HeldOut:
    """Predict and score the cases that a trained fold held out, and draw some of them beside its record."""
    from segpipe.dataset.fingerprint.schema import Fingerprint
    from segpipe.evaluation.run import evaluate as stage
    from segpipe.reporting.run import draw_examples

    place = workspace.place(configuration, plan.recipe, fold)
    folder = workspace.predictions / place
    predicted = predict_held_out(
        workspace, plan, configuration, fold, runtime, tta=tta, resume=resume, watch=watch, folder=folder
    )
    pairs = [
        (c.id, output, c.label.path)
        for c, output in zip(predicted.cases, predicted.outputs, strict=True)
        if c.label and c.id not in predicted.failed
    ]
    with watch.counting("scoring", len(pairs)) as step:
        evaluation = stage(
            pairs, plan.labels, missing=predicted.failed, tolerance_mm=tolerance_mm, jobs_limit=jobs, on_case=step
        )
    evaluation_file = workspace.evaluation / place.with_suffix(".json")
    evaluation.write(evaluation_file)
    failed = {c: f"left out: {r}" for c, r in Fingerprint.read(workspace.fingerprint).left_out.items()}
    failed |= {c: f"preprocessing: {r}" for c, r in index.failed.items()}
    failed |= {c: f"prediction or scoring: {r}" for c, r in evaluation.failed.items()}
    pictures = draw_examples(workspace, place)
    return HeldOut(evaluation, folder, evaluation_file, tuple(pictures), failed)


def prepare_first_stage(
    workspace: Workspace,
    plan: Plan,
    index: PreprocessedIndex,
    configuration: str,
    runtime: Runtime,
    *,
    jobs: int | None,
    watch: Watch,
) -> PreprocessedIndex:
    """Bring what a cascade's first stage found onto the grid of its second: of each case, from the fold that held it out.

    Raises
    ------
    TrainingError
        If not every fold of the first stage is trained.
    """
    from segpipe.dataset.fingerprint.schema import Fingerprint
    from segpipe.preprocessing.previous import FoundBefore, prepare_previous
    from segpipe.preprocessing.run import peak_bytes

    chosen = plan.configuration(configuration)
    measured = Fingerprint.read(workspace.fingerprint)
    if chosen.previous_stage is None:
        return index
    first = chosen.previous_stage
    folds = range(len(splits_of(workspace, measured).folds))
    found, failed = [], dict(index.failed)
    for fold in folds:
        # Apart from the predictions that were scored, which may have been made without mirroring.
        folder = workspace.predictions / configuration / plan.recipe / "first_stage" / f"fold_{fold}"
        predicted = predict_held_out(
            workspace, plan, first, fold, runtime, tta=True, resume=True, watch=watch, folder=folder
        )
        failed |= {c: f"{first}: {reason}" for c, reason in predicted.failed.items()}
        found += [
            FoundBefore(case, output, row.model)
            for case, output, row in zip(predicted.cases, predicted.outputs, predicted.rows, strict=True)
            if row.status == "done" and case.id in index.cases
        ]
    with watch.counting(f"bringing the segmentations of {first} to {configuration}", len(found)) as step:
        failed |= prepare_previous(
            found,
            plan,
            chosen,
            workspace.first_stage(configuration, plan.recipe),
            jobs_limit=jobs,
            bytes_each=peak_bytes(measured, plan, chosen),
            on_case=step,
        )
    for case, reason in failed.items():
        if case not in index.failed:
            watch.note(f"{case}: {reason}")
    kept = tuple(f.id for f in found if f.id not in failed)
    return index.model_copy(update={"configuration": configuration, "cases": kept, "failed": failed})
