"""One fold: its arrays prepared, and trained."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from segpipe.core.progress import Watch
from segpipe.core.workspace import Workspace
from segpipe.errors import ArtefactError
from segpipe.training.settings import FoldSettings

if TYPE_CHECKING:
    from segpipe.execution.device import Runtime
    from segpipe.execution.processes import Workers
    from segpipe.planning.schema import Plan
    from segpipe.preprocessing.schema import PreprocessedIndex
    from segpipe.training.guide import Guidance
    from segpipe.training.initial import InitialWeights
    from segpipe.training.job import FoldJob
    from segpipe.training.progress import Status
    from segpipe.training.schema import TrainingRecord
from segpipe.workflows.project import splits_of

CURVE_SECONDS = 30.0
"""Time between two drawings of the curves of a running training."""


MOST_SHOWN = 4
"""Labels whose Dice is shown one by one while training runs."""


def prepare_arrays(
    workspace: Workspace, current: Plan, configuration: str, jobs: Workers, watch: Watch
) -> PreprocessedIndex:
    """Prepare the arrays of a configuration; a case that fails is noted, and that all fail is an error."""
    from segpipe.dataset.fingerprint.schema import Fingerprint
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
) -> FoldJob:
    """Return what is to be trained, for now without cases where nothing is prepared yet."""
    from segpipe.dataset.fingerprint.schema import Fingerprint
    from segpipe.training.initial import InitialWeights
    from segpipe.training.job import FoldJob

    if settings.init_from is not None:
        initial = InitialWeights.of(Path(settings.init_from))
    if settings.resume and workspace.fold(configuration, current.recipe, settings.fold).checkpoint.is_file():
        initial = None
    return FoldJob(
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
            draw_curves(job.folder, current)
            drawn_at = time.monotonic()

    with watch.training(f"training fold {settings.fold}") as show:

        def on_iteration(status: Status) -> None:
            show(status.progress, status.remaining_s, told(status))

        try:
            record = stage(job, runtime, Listener(on_iteration, on_epoch, watch.note))
        finally:
            if board:
                board.close()
    draw_curves(job.folder, current)
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
