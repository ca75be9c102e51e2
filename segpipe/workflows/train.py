"""`segpipe train`: train one fold and score its held-out cases."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from segpipe.core.progress import SILENT, Watch
from segpipe.core.regular import lies
from segpipe.core.workspace import FoldFolder
from segpipe.errors import TrainingError
from segpipe.networks.spec import parse_choice
from segpipe.planning.recipe import load_recipe
from segpipe.planning.schema import Plan
from segpipe.training.run import require_state
from segpipe.training.schema import TrainingRecord
from segpipe.training.settings import FoldSettings
from segpipe.workflows import checked
from segpipe.workflows.arrays import prepare_arrays
from segpipe.workflows.fold import FoldWork, require_fold, train_fold
from segpipe.workflows.held_out import HeldOut, prepare_first_stage, score_held_out
from segpipe.workflows.options import FoldOptions, RunOptions, TrainOptions
from segpipe.workflows.page import Page, places, plain, scores, texts
from segpipe.workflows.planning import (
    compare_with_recipe,
    configuration_of,
    current_plan,
    plan_for_network,
    recipe_for_device,
)
from segpipe.workflows.project import Project, write_asked


@dataclass(frozen=True)
class Trained:
    """What `segpipe train` made."""

    record: TrainingRecord
    model: Path
    folder: FoldFolder
    held_out: HeldOut | None = None
    """Scores of the held-out cases; None where none was held out."""

    @property
    def failed(self) -> dict[str, str]:
        """Cases that were lost on the way, with the stage and the reason."""
        return {} if self.held_out is None else self.held_out.failed


def train(options: TrainOptions, watch: Watch = SILENT) -> Trained:
    """Train one fold, then predict and score its held-out cases whole; plans and preprocesses first what is not there yet.

    The workspace's plan is used; where there is none, that of the model to begin with, or one by the recipe that suits the device.
    """
    project = open_for_training(options, watch)
    with project.alone():
        base = current_plan(project, init_from=options.init_from)
        checked.require_fold_there(options.fold, project.splits)
        compare_with_recipe(project, base.recipe, "a plan by `segpipe plan --recipe {}`")
        current = plan_for_network(project, base, options.network)
        work = prepare_fold(
            project, base, current, options.configuration or configuration_of(options.init_from, current), options
        )
    return train_and_score(work, options, "train")


def open_for_training(options: FoldOptions, watch: Watch) -> Project:
    """Check the options, and open a project.

    Raises
    ------
    SegpipeError
        If an option is wrong, the workspace is another dataset's, or cannot be written.
    """
    checked.require_training_options(options)
    project = Project.open(options, watch)
    checked.require_configuration(options.configuration, project.workspace, getattr(options, "init_from", None))
    settings = FoldSettings.of(options)
    checked.require_offered_fold(settings.fold, project.workspace, project.dataset)
    _require_state_before(project, options, settings)
    return project


def _require_state_before(project: Project, options: FoldOptions, settings: FoldSettings) -> None:
    """Raise what stands against a fold's state before the dataset is measured, by the plan that the workspace has."""
    if not lies(project.workspace.plan):
        return
    known = Plan.read(project.workspace.plan)
    configuration = options.configuration or configuration_of(settings.init_from, known)
    resume = settings.resume or settings.extend
    refused = None
    for recipe in _recipes_to_come(options, known):
        name = recipe if options.network is None else f"{recipe}+{parse_choice(options.network).slug}"
        try:
            require_state(
                project.workspace.fold(configuration, name, settings.fold), resume=resume, extend=settings.extend
            )
        except TrainingError as error:
            refused = refused or error
        else:
            return
    if refused is not None:
        raise refused


def _recipes_to_come(options: FoldOptions, known: Plan) -> list[str]:
    """Return the recipes whose plan may train a fold: the known plan's, and where `segpipe run` may plan again that one's."""
    if not isinstance(options, RunOptions):
        return [known.recipe]
    if options.recipe is not None:
        return [load_recipe(options.recipe).name]
    return [known.recipe, recipe_for_device(options.device)]


def prepare_fold(project: Project, base: Plan, current: Plan, configuration: str, options: FoldOptions) -> FoldWork:
    """Prepare everything that a fold is trained on."""
    work = FoldWork(project, current, configuration, FoldSettings.of(options))
    require_fold(work)
    # By the workspace's plan: a network changes patches, not the arrays they are cut from.
    work = work.on(prepare_arrays(project, base, configuration))
    return work.on(prepare_first_stage(work))


def train_and_score(work: FoldWork, options: FoldOptions, command: str) -> Trained:
    """Train a prepared fold and score what it held out."""
    watch = work.project.watch
    watch.note(f"training on {work.project.runtime.describe()}")
    if not lies(work.folder.record):
        write_asked(work.folder.root, command, options)
    record = train_fold(work)
    if work.fold == "all":
        watch.note("fold all holds out no case: there is nothing to validate on")
        return Trained(record, work.model, work.folder)
    return Trained(record, work.model, work.folder, score_held_out(work, options))


def page(done: Trained, _: TrainOptions) -> Page:
    """Show how long it took, scores, and where everything is."""
    record, held_out = done.record, done.held_out
    where = {"model": done.model, "log": done.folder.log, "curves": done.folder.curves}
    if held_out is not None:
        where |= {"predictions": held_out.predictions, "scores": held_out.evaluation_file}
        where |= {f"example {n}": picture for n, picture in enumerate(held_out.pictures, start=1)}
    early = f"; stopped early, best epoch {record.best_epoch}" if record.stopped_early else ""
    took = (
        f"{record.iterations} iterations in {record.elapsed_s / 60:.1f} min{early}; "
        f"{record.data_wait_share:.1%} of the time waiting for data"
    )
    scored = None if held_out is None else held_out.evaluation
    values = {"training": plain(record), "failed": done.failed, "evaluation": plain(scored)} | texts(where)
    return Page(values, [took, *(scores(scored) if scored else []), *places(where)], done.failed)
