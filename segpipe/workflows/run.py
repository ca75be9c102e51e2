"""`segpipe run`: from a dataset to a report on its held-out cases."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from segpipe.core.progress import SILENT, Watch
from segpipe.core.workspace import Workspace
from segpipe.evaluation.schema import Evaluation
from segpipe.planning.schema import Plan
from segpipe.reporting.run import report
from segpipe.training.schema import TrainingRecord
from segpipe.workflows.checked import require_fold_there
from segpipe.workflows.fold import FoldWork
from segpipe.workflows.options import RunOptions
from segpipe.workflows.page import Page, places, plain, scores, texts
from segpipe.workflows.planning import compare_with_recipe, plan_for_network, plan_to_run
from segpipe.workflows.project import Project
from segpipe.workflows.train import open_for_training, prepare_fold, train_and_score


@dataclass(frozen=True)
class RunResult:
    """What `segpipe run` made."""

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


def run(options: RunOptions, watch: Watch = SILENT) -> RunResult:
    """Check, plan, preprocess, train one fold, predict its held-out cases, evaluate and report."""
    project = open_for_training(options, watch)
    with project.alone():
        work = _prepare(project, options)
    trained = train_and_score(work, options, "run")
    held_out = trained.held_out
    assert held_out is not None, "a numbered fold holds cases out"
    return RunResult(
        plan=work.plan,
        record=trained.record,
        evaluation=held_out.evaluation,
        workspace=project.workspace,
        model=trained.model,
        predictions=held_out.predictions,
        evaluation_file=held_out.evaluation_file,
        report=report(project.workspace, [work.place], project.measured),
        failed=held_out.failed,
    )


def _prepare(project: Project, options: RunOptions) -> FoldWork:
    """Check, measure, plan and preprocess."""
    note = project.watch.note
    measured = project.measure(resample_channels=options.resample_channels)
    require_fold_there(options.fold, project.splits)
    matched = project.matched
    note(
        f"{matched.name}: {matched.layout} layout, {len(measured.cases)} usable case(s), {len(measured.left_out)} left out"
    )
    base = plan_to_run(project, options.recipe)
    if options.recipe is None:
        compare_with_recipe(project, base.recipe, "--recipe {}")
    current = plan_for_network(project, base, options.network)
    chosen = current.configuration(options.configuration or current.default_configuration())
    shape = "x".join(map(str, chosen.patch_size))
    note(f"recipe {current.recipe}, configuration {chosen.name}: patch {shape}, batch {chosen.batch_size}")
    return prepare_fold(project, base, current, chosen.name, options)


def page(done: RunResult, _: RunOptions) -> Page:
    """Show scores, and where everything is."""
    where = {
        "model": done.model, "predictions": done.predictions, "scores": done.evaluation_file, "report": done.report,
    }  # fmt: skip
    values = {"evaluation": plain(done.evaluation), "training": plain(done.record), "failed": done.failed}
    return Page(values | texts(where), [*scores(done.evaluation), *places(where)], done.failed)
