"""The whole line in one command: from a dataset to a report on its held-out cases."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from segpipe.core.progress import SILENT
from segpipe.core.workspace import PathLike
from segpipe.training.settings import FoldSettings
from segpipe.workflows.fold import prepare_arrays, require_fold, train_fold
from segpipe.workflows.held_out import prepare_first_stage, score_held_out
from segpipe.workflows.planning import make_plan, plan_for_network, recipe_for
from segpipe.workflows.project import alone_in, fingerprint, workspace_of

if TYPE_CHECKING:
    from segpipe.core.progress import Watch
    from segpipe.core.workspace import Workspace
    from segpipe.evaluation.schema import Evaluation
    from segpipe.execution.device import Runtime
    from segpipe.planning.schema import Plan
    from segpipe.preprocessing.schema import PreprocessedIndex
    from segpipe.training.schema import TrainingRecord


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
    network: str | None = None,
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
    devices: int = 1,
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
    network : str, optional
        A network instead of the recipe's, as NAME or NAME:key=value,...; patch and batch are planned for it.
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
    devices : int
        Devices to train on together, each with its share of the batch.
    resume : bool
        Continue an interrupted run; finished stages are kept.
    watch : Watch
        Told of progress.
    """
    from segpipe.execution.device import choose_runtime, require_devices
    from segpipe.reporting.run import report as report_stage

    settings = FoldSettings(
        fold=fold,
        epochs=epochs,
        minutes=minutes,
        seed=seed,
        deterministic=deterministic,
        resume=resume,
        devices=devices,
    )
    runtime = choose_runtime(device, deterministic=deterministic)
    require_devices(runtime.device, devices)
    workspace = workspace_of(dataset, work)
    with alone_in(workspace, watch):
        current, chosen, index = _prepare(
            dataset, workspace, runtime, settings, recipe, configuration, network, resample_channels, jobs, watch
        )
    watch.note(f"training on {runtime.describe()}")
    record = train_fold(workspace, current, index, runtime, settings, configuration=chosen, watch=watch)
    held_out = score_held_out(
        workspace,
        current,
        index,
        fold,
        runtime,
        configuration=chosen,
        tta=tta,
        tolerance_mm=tolerance_mm,
        jobs=jobs,
        resume=resume,
        watch=watch,
    )
    return RunResult(
        plan=current,
        record=record,
        evaluation=held_out.evaluation,
        workspace=workspace,
        model=workspace.model(chosen, current.recipe),
        predictions=held_out.predictions,
        evaluation_file=held_out.evaluation_file,
        report=report_stage(workspace, [workspace.place(chosen, current.recipe, fold)]),
        failed=held_out.failed,
    )


def _prepare(
    dataset: PathLike,
    workspace: Workspace,
    runtime: Runtime,
    settings: FoldSettings,
    recipe: PathLike | None,
    configuration: str | None,
    network: str | None,
    resample_channels: bool | None,
    jobs: int | None,
    watch: Watch,
) -> tuple[Plan, str, PreprocessedIndex]:
    """Check, measure, plan and preprocess; returns the plan, the configuration to train, and its cases."""
    from segpipe.dataset.schema import Dataset

    measured = fingerprint(dataset, workspace, resample_channels=resample_channels, jobs=jobs, watch=watch)
    matched = Dataset.read(workspace.dataset)
    watch.note(
        f"{matched.name}: {matched.layout} layout, {len(measured.cases)} usable case(s), {len(measured.left_out)} left out"
    )
    chosen_recipe = recipe or recipe_for(runtime)
    why = "" if recipe else " (no GPU: the recipe for CPUs)" if chosen_recipe == "cpu" else " (a GPU is there)"
    before = workspace.plan.read_bytes() if workspace.plan.is_file() else None
    base = make_plan(measured, workspace, recipe=chosen_recipe)
    if before is not None and before != workspace.plan.read_bytes():
        watch.note(f"{workspace.plan}: replaced; to train by a plan of your own use `segpipe train`")
    current = plan_for_network(workspace, base, network, watch)
    chosen = configuration or current.default_configuration()
    shape = "x".join(map(str, current.configuration(chosen).patch_size))
    watch.note(
        f"recipe {current.recipe}{why}, configuration {chosen}: patch {shape}, batch {current.configuration(chosen).batch_size}"
    )
    require_fold(workspace, current, chosen, settings)
    index = prepare_arrays(workspace, base, chosen, jobs, watch)
    index = prepare_first_stage(workspace, current, index, chosen, runtime, jobs=jobs, watch=watch)
    return current, chosen, index
