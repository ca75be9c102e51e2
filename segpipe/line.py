"""The whole line in one command: from a dataset to a report on its held-out cases."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from segpipe.steps import (
    SILENT,
    PathLike,
    fingerprint,
    prepare_arrays,
    require_fold,
    require_one_end,
    splits_of,
    train_fold,
    workspace_of,
)

if TYPE_CHECKING:
    from segpipe.dataset.schema import Dataset
    from segpipe.evaluation.schema import Evaluation
    from segpipe.fingerprint.schema import Fingerprint
    from segpipe.planning.schema import Plan
    from segpipe.preprocessing.schema import PreprocessedIndex
    from segpipe.runtime import Runtime
    from segpipe.training.schema import TrainingRecord
    from segpipe.watch import Watch
    from segpipe.workspace import Workspace


@dataclass(frozen=True)
class RunResult:
    """What ``run`` made."""

    plan: Plan
    record: TrainingRecord
    evaluation: Evaluation
    workspace: Workspace
    model: Path
    predictions: Path
    evaluation_file: Path
    report: Path
    failed: dict[str, str] = field(default_factory=dict)
    """Cases that were lost on the way, with the stage and the reason."""


def run(
    dataset: PathLike,
    *,
    work: PathLike | None = None,
    recipe: PathLike | None = None,
    configuration: str | None = None,
    fold: int = 0,
    epochs: int | None = None,
    minutes: float | None = None,
    tta: bool = True,
    tolerance_mm: float = 1.0,
    resample_channels: bool | None = None,
    device: str = "auto",
    jobs: int | None = None,
    seed: int = 0,
    deterministic: bool = False,
    resume: bool = False,
    watch: Watch = SILENT,
) -> RunResult:
    """Do the whole line: check, plan, preprocess, train one fold, predict its held-out cases, evaluate, report.

    Parameters
    ----------
    dataset : path
        Folder or manifest.
    work : path, optional
        The workspace.
    recipe : str or path, optional
        ``default`` with a GPU, ``cpu`` without one, unless given.
    configuration : str, optional
        The plan's 3d_fullres (2d where there is none) unless given.
    fold : int
        Fold to hold out.
    epochs, minutes : optional
        End of training, instead of the recipe's.
    tta : bool
        Average predictions over mirrored images.
    tolerance_mm : float
        Of the normalised surface Dice.
    resample_channels : bool, optional
        Bring channels on other grids onto the first one's, or refuse them; as the last time unless given, else refuse.
    device : str
        auto, cpu, cuda or cuda:N.
    jobs : int, optional
        Most worker processes.
    seed : int
        Of weights, patches and augmentation.
    deterministic : bool
        The same bytes twice on the same machine.
    resume : bool
        Continue an interrupted run; finished stages are kept.
    watch : Watch
        Told of progress.
    """
    from segpipe.dataset.schema import Dataset
    from segpipe.planning.run import write_plan
    from segpipe.runtime import choose_runtime

    require_one_end(epochs, minutes)
    runtime = choose_runtime(device, deterministic=deterministic)
    workspace = workspace_of(dataset, work)
    measured = fingerprint(dataset, workspace, resample_channels=resample_channels, jobs=jobs, watch=watch)
    matched = Dataset.read(workspace.dataset)
    watch.note(
        f"{matched.name}: {matched.layout} layout, {len(measured.cases)} usable case(s), {len(measured.left_out)} left out"
    )
    chosen_recipe = recipe or ("default" if runtime.device.type == "cuda" else "cpu")
    why = "" if recipe else " (no GPU: the recipe for CPUs)" if chosen_recipe == "cpu" else " (a GPU is there)"
    before = workspace.plan.read_bytes() if workspace.plan.is_file() else None
    current = write_plan(measured, workspace, recipe=chosen_recipe)
    if before is not None and before != workspace.plan.read_bytes():
        watch.note(f"{workspace.plan}: replaced; to train by a plan of your own use `segpipe train`")
    chosen = configuration or current.default_configuration()
    shape = "x".join(map(str, current.configuration(chosen).patch_size))
    watch.note(
        f"recipe {current.recipe}{why}, configuration {chosen}: patch {shape}, batch {current.configuration(chosen).batch_size}"
    )
    require_fold(workspace, current, chosen, fold, resume=resume)
    index = prepare_arrays(workspace, current, chosen, jobs, watch)
    watch.note(f"training on {runtime.describe()}")
    record = train_fold(
        workspace,
        current,
        index,
        runtime,
        fold=fold,
        epochs=epochs,
        minutes=minutes,
        seed=seed,
        deterministic=deterministic,
        resume=resume,
        watch=watch,
    )
    return _score_held_out(
        _HeldOut(workspace, current, measured, matched, index, record),
        runtime,
        tta=tta,
        tolerance_mm=tolerance_mm,
        jobs=jobs,
        resume=resume,
        watch=watch,
    )


@dataclass(frozen=True)
class _HeldOut:
    """What scoring the held-out cases needs from the stages before."""

    workspace: Workspace
    plan: Plan
    measured: Fingerprint
    matched: Dataset
    index: PreprocessedIndex
    record: TrainingRecord


def _score_held_out(
    done: _HeldOut, runtime: Runtime, *, tta: bool, tolerance_mm: float, jobs: int | None, resume: bool, watch: Watch
) -> RunResult:
    from segpipe.evaluation.run import evaluate as evaluate_stage
    from segpipe.inference.inputs import InputCase
    from segpipe.inference.predictor import Predictor
    from segpipe.inference.run import predict as predict_stage
    from segpipe.io.formats import output_ending
    from segpipe.reporting.run import report as report_stage

    workspace, current, record = done.workspace, done.plan, done.record
    place = Path(record.configuration) / record.variant / f"fold_{record.fold}"
    predictions, evaluation_file = workspace.predictions / place, workspace.evaluation / f"{place}.json"
    model = workspace.model(record.configuration, record.variant)
    # Only the fold that did not train on these cases; the model file may hold others.
    predictor = Predictor.load(model, runtime, folds=(str(record.fold),), tta=tta)
    held_out = set(splits_of(workspace, done.measured).fold(record.fold).validation)
    cases = [c for c in done.matched.cases if c.id in held_out]
    inputs = [
        InputCase(c.id, tuple(i.path for i in c.images), predictions / f"{c.id}{output_ending(c.images[0].path)}")
        for c in cases
    ]
    with watch.counting("predicting held-out cases", len(inputs)) as step:
        rows = predict_stage(
            inputs, predictor, predictions / "predictions.jsonl", resume=resume, on_case=lambda row: step(row.case)
        )
    for row in rows:
        for doubt in row.doubts:
            watch.note(f"{row.case}: {doubt}")
    not_predicted = {row.case: row.reason or "" for row in rows if row.status == "failed"}
    pairs = [
        (c.id, i.output, c.label.path)
        for c, i in zip(cases, inputs, strict=True)
        if c.label and c.id not in not_predicted
    ]
    with watch.counting("scoring", len(pairs)) as step:
        evaluation = evaluate_stage(
            pairs,
            current.labels,
            missing=not_predicted,
            tolerance_mm=tolerance_mm,
            jobs_limit=jobs,
            on_case=step,
        )
    evaluation.write(evaluation_file)
    failed = {c: f"left out: {r}" for c, r in done.measured.left_out.items()}
    failed |= {c: f"preprocessing: {r}" for c, r in done.index.failed.items()}
    failed |= {c: f"prediction or scoring: {r}" for c, r in evaluation.failed.items()}
    return RunResult(
        plan=current,
        record=record,
        evaluation=evaluation,
        workspace=workspace,
        model=model,
        predictions=predictions,
        evaluation_file=evaluation_file,
        report=report_stage(workspace),
        failed=failed,
    )
