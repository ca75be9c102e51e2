"""Steps that several commands share: they run a stage on a workspace, and tell the watch."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from segpipe.errors import ArtefactError, ModelError, SegpipeError
from segpipe.training.settings import FoldSettings
from segpipe.watch import SILENT, Watch
from segpipe.workspace import PathLike, Workspace

if TYPE_CHECKING:
    from segpipe.dataset.splits import Splits
    from segpipe.fingerprint.schema import Fingerprint
    from segpipe.jobs import Workers
    from segpipe.networks.spec import NetworkChoice
    from segpipe.planning.design import Probe
    from segpipe.planning.recipe import Recipe
    from segpipe.planning.schema import Plan
    from segpipe.preprocessing.schema import PreprocessedIndex
    from segpipe.runtime import Runtime
    from segpipe.training.guide import Guidance
    from segpipe.training.initial import InitialWeights
    from segpipe.training.job import Job
    from segpipe.training.progress import Status
    from segpipe.training.schema import TrainingRecord

CURVE_SECONDS = 30.0
"""Time between two drawings of the curves of a running training."""
MOST_SHOWN = 4
"""Labels whose Dice is shown one by one while training runs."""


def workspace_of(dataset: PathLike, work: PathLike | None) -> Workspace:
    """Return the workspace of a dataset.

    Raises
    ------
    SegpipeError
        If it would lie in the dataset's own folder, where nothing may be written.
    """
    source = Path(dataset).resolve()
    folder = source if source.is_dir() else source.parent
    if work is None:
        from segpipe.dataset.match import match_dataset

        name = re.sub(r"[^\w.-]+", "_", match_dataset(source).name).strip(".") or folder.name
        work = Path("runs") / name
    if source.is_dir() and Path(work).resolve().is_relative_to(folder):
        raise SegpipeError(f"workspace {work}: lies in the dataset's own folder {folder}; give another with --work")
    if Path(work).resolve() == folder:
        raise SegpipeError(f"workspace {work}: is the folder of the manifest; give another with --work")
    return Workspace(Path(work))


def fingerprint(
    dataset: PathLike,
    workspace: Workspace,
    *,
    resample_channels: bool | None = None,
    jobs: Workers = None,
    watch: Watch = SILENT,
) -> Fingerprint:
    """Check and measure a dataset; writes dataset.json, fingerprint.json and the decoded cases."""
    from segpipe.fingerprint.run import fingerprint as stage

    with watch.counting("checking and measuring", None) as done:
        return stage(dataset, workspace, resample_channels=resample_channels, jobs_limit=jobs, on_case=done)


@contextmanager
def alone_in(workspace: Workspace, watch: Watch) -> Iterator[None]:
    """Prepare a workspace while nobody else does: two folds may be started at the same time, the second then finds all done."""
    from segpipe.locks import locked

    with locked(workspace.root, wait=True, note=watch.note):
        yield


def recipe_for(runtime: Runtime) -> str:
    """Return the recipe that suits a device, where none is asked for."""
    return "default" if runtime.device.type == "cuda" else "cpu"


def current_plan(
    dataset: PathLike,
    workspace: Workspace,
    jobs: Workers,
    watch: Watch,
    *,
    recipe: str = "default",
    init_from: PathLike | None = None,
) -> Plan:
    """Return the workspace's plan; where there is none, that of the model to begin with, or the recipe's."""
    from segpipe.fingerprint.schema import Fingerprint
    from segpipe.modelfile import is_weights_file, read_model
    from segpipe.planning.run import adopt, read_plan
    from segpipe.planning.schema import Plan

    fingerprint(dataset, workspace, jobs=jobs, watch=watch)
    if workspace.plan.is_file():
        return read_plan(workspace)
    measured = Fingerprint.read(workspace.fingerprint)
    if init_from is not None and not is_weights_file(Path(init_from)):
        watch.note(f"no plan in {workspace.root} yet: taking over that of {init_from}")
        try:
            held = read_model(Path(init_from)).single(Path(init_from), "--init-from")
            theirs = Plan.model_validate_json(held.plan_json)
        except ValueError as error:
            raise ModelError(f"{init_from}: its plan is from another version of segpipe ({error})") from error
        return adopt(Path(init_from), measured, workspace, theirs)
    watch.note(f"no plan in {workspace.root} yet: planning with the {recipe} recipe")
    return make_plan(measured, workspace, recipe=recipe)


def make_plan(
    measured: Fingerprint,
    workspace: Workspace,
    *,
    recipe: PathLike | Recipe,
    budget_gb: float | None = None,
    spacing_mm: tuple[float, float, float] | None = None,
) -> Plan:
    """Plan by a recipe and write plan.json; torch is asked only where the recipe's network has to be measured."""
    from segpipe.planning.recipe import load_recipe
    from segpipe.planning.run import write_plan

    chosen = load_recipe(recipe)
    return write_plan(
        measured,
        workspace,
        recipe=chosen,
        budget_gb=budget_gb,
        spacing_mm=spacing_mm,
        probe=probe_for(chosen.network),
    )


def probe_for(choice: NetworkChoice) -> Probe | None:
    """Return what measures a network; None for a planned U-Net, whose needs are known."""
    from segpipe.networks.catalogue import architecture_of

    if architecture_of(choice.name).layout == "unet":
        return None
    from segpipe.networks.measure import Measured

    return Measured()


def plan_for_network(workspace: Workspace, base: Plan, network: str | None, watch: Watch) -> Plan:
    """Return the workspace's plan for another network, made and kept beside it the first time; the plan itself where none is asked for."""
    from segpipe.fingerprint.schema import Fingerprint
    from segpipe.networks.spec import parse_choice
    from segpipe.planning.run import variant_plan

    if network is None:
        return base
    choice = parse_choice(network)
    probe = probe_for(choice)
    if probe is not None:
        watch.note(f"{choice.name}: planning for its memory, which is measured and can take a minute the first time")
    chosen = variant_plan(base, Fingerprint.read(workspace.fingerprint), choice, workspace, probe)
    for name in base.configurations:
        if name not in chosen.configurations:
            because = next((d.because for d in chosen.decisions if d.rule == name), "its first stage cannot be trained")
            watch.note(f"{choice.name}: no configuration {name}: {because}")
    return chosen


def variant_called(plan: Plan, name: str) -> str:
    """Name of a plan's variant that was given a name of its own."""
    return f"{plan.recipe}~{name}" if "+" in plan.recipe else f"{plan.recipe}+{name}"


def keep_plan_as(workspace: Workspace, plan: Plan, variant: str) -> Plan:
    """Return the plan under another name, kept beside the workspace's: what is trained by it lies apart."""
    named = plan.model_copy(update={"recipe": variant})
    named.write(workspace.plan_of(variant))
    return named


def configuration_of(init_from: PathLike | None, current: Plan) -> str:
    """Return the configuration to train when none is asked for: that of the model to begin with, where the plan has it."""
    from segpipe.modelfile import is_weights_file, read_model

    if init_from is not None and Path(init_from).exists() and not is_weights_file(Path(init_from)):
        theirs = read_model(Path(init_from)).configuration
        if theirs in current.configurations:
            return theirs
    return current.default_configuration()


def prepare_arrays(
    workspace: Workspace, current: Plan, configuration: str, jobs: Workers, watch: Watch
) -> PreprocessedIndex:
    """Prepare the arrays of a configuration; a case that fails is noted, and that all fail is an error."""
    from segpipe.fingerprint.schema import Fingerprint
    from segpipe.preprocessing.run import preprocess as stage

    arrays = current.arrays_of(configuration)
    total = len(Fingerprint.read(workspace.fingerprint).cases)
    with watch.counting(f"preprocessing for {arrays}", total) as done:
        index = stage(workspace, current, configuration=arrays, jobs_limit=jobs, on_case=done)
    for case, reason in index.failed.items():
        watch.note(f"preprocessing: {case}: {reason}")
    if not index.cases:
        raise ArtefactError(f"{workspace.preprocessed(arrays)}: no case could be prepared; the reasons are above")
    return index


def job_of(
    workspace: Workspace,
    current: Plan,
    configuration: str,
    index: PreprocessedIndex | None,
    settings: FoldSettings,
    *,
    guidance: Guidance | None = None,
    initial: InitialWeights | None = None,
) -> Job:
    """Return what is to be trained, for now without cases where nothing is prepared yet."""
    from segpipe.fingerprint.schema import Fingerprint
    from segpipe.training.initial import InitialWeights
    from segpipe.training.job import Job

    if settings.init_from is not None:
        initial = InitialWeights.of(Path(settings.init_from))
    if settings.resume and workspace.fold(configuration, current.recipe, settings.fold).checkpoint.is_file():
        initial = None
    return Job(
        workspace=workspace,
        plan=current,
        splits=splits_of(workspace, Fingerprint.read(workspace.fingerprint)),
        prepared=() if index is None else index.cases,
        configuration=configuration,
        fold=settings.fold,
        epochs=settings.epochs,
        minutes=settings.minutes,
        seed=settings.seed,
        deterministic=settings.deterministic,
        resume=settings.resume,
        initial=initial,
        n_devices=settings.devices,
        guidance=guidance,
    )


def train_fold(
    workspace: Workspace,
    current: Plan,
    index: PreprocessedIndex,
    runtime: Runtime,
    settings: FoldSettings,
    *,
    configuration: str,
    watch: Watch,
    guidance: Guidance | None = None,
    initial: InitialWeights | None = None,
) -> TrainingRecord:
    """Train one fold on prepared arrays, telling the watch; its curves are drawn as it goes."""
    from segpipe.reporting.run import draw_curves
    from segpipe.training.job import Listener
    from segpipe.training.run import train as stage

    job = job_of(workspace, current, configuration, index, settings, guidance=guidance, initial=initial)
    board = None
    if settings.tensorboard:
        from segpipe.training.board import Board

        board = Board(job.folder)
    drawn_at = 0.0

    def on_epoch() -> None:
        nonlocal drawn_at
        if board:
            board.show()
        if time.monotonic() - drawn_at > CURVE_SECONDS:
            draw_curves(job.folder, current.labels.names)
            drawn_at = time.monotonic()

    with watch.training(f"training fold {settings.fold}") as show:

        def on_iteration(status: Status) -> None:
            show(status.progress, status.remaining_s, told(status))

        try:
            record = stage(job, runtime, Listener(on_iteration, on_epoch, watch.note))
        finally:
            if board:
                board.close()
    draw_curves(job.folder, current.labels.names)
    return record


def told(status: Status) -> str:
    """Epoch, loss and Dice in a line; of many labels the mean and the lowest."""
    seen = [(name, dice) for name, dice in status.dice if dice is not None]
    line = f"epoch {status.epoch + 1}, loss {status.loss:.3f}"
    if not seen:
        return line
    if len(seen) > MOST_SHOWN:
        lowest = min(seen, key=lambda s: s[1])
        return f"{line}, patch Dice {status.mean_dice:.3f} (lowest {lowest[0]} {lowest[1]:.3f})"
    return f"{line}, patch Dice " + ", ".join(f"{name} {dice:.3f}" for name, dice in seen)


def require_fold(workspace: Workspace, current: Plan, configuration: str, settings: FoldSettings) -> None:
    """Raise what would stop training a fold, before arrays are prepared for it."""
    from segpipe.training.run import require_first_stage, require_trainable

    job = job_of(workspace, current, configuration, None, settings)
    require_trainable(job)
    require_first_stage(job)
    if settings.tensorboard:
        from segpipe.training.board import require_tensorboard

        require_tensorboard()


def doubt_of_folds(path: Path, folds: tuple[str, ...], fold: int | str, workspace: Workspace) -> str | None:
    """Why the held-out cases of a fold may not be new to some folds of a model; None where they are."""
    if fold == "all":
        return None
    if folds != (str(fold),):
        return (
            f"fold(s) {', '.join(folds)}: may have seen the cases that fold {fold} holds out, and scores flatter then"
        )
    if not path.resolve().is_relative_to(workspace.root.resolve()):
        return f"its fold {fold} is taken for the one that held out the same cases, which the file cannot show"
    return None


def splits_of(workspace: Workspace, measured: Fingerprint) -> Splits:
    """Splits of the fingerprint's cases, made when they are not there."""
    from segpipe.dataset.splits import read_or_make

    return read_or_make(workspace.splits, measured.groups, measured.digest())
