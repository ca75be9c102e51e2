"""One fold: its arrays prepared, and trained."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path

from segpipe.core.regular import lies
from segpipe.core.system_names import real_path
from segpipe.core.workspace import FoldFolder, Workspace
from segpipe.errors import TrainingError
from segpipe.planning.schema import Plan
from segpipe.preprocessing.schema import PreprocessedIndex
from segpipe.reporting.run import draw_curves
from segpipe.training.extension import require_followed, require_longer
from segpipe.training.guide import Guidance
from segpipe.training.initial import InitialWeights
from segpipe.training.job import FoldJob, Listener
from segpipe.training.progress import Status
from segpipe.training.run import require_first_stage, require_trainable, train
from segpipe.training.schema import TrainingRecord
from segpipe.training.settings import FoldSettings
from segpipe.workflows.project import Project

CURVE_SECONDS = 30.0
"""Time between two drawings of the curves of a running training."""
MOST_SHOWN = 4
"""Labels whose Dice is shown one by one while training runs."""


@dataclass(frozen=True)
class FoldWork:
    """A fold of a configuration, to be trained and scored."""

    project: Project
    plan: Plan
    configuration: str
    settings: FoldSettings
    index: PreprocessedIndex | None = None
    """Cases whose arrays are there; None where nothing is prepared yet."""

    @property
    def fold(self) -> int | str:
        """Fold to hold out, or "all"."""
        return self.settings.fold

    @property
    def place(self) -> Path:
        """Where the fold lies below each of the folders models, predictions and evaluation."""
        return self.project.workspace.place(self.configuration, self.plan.recipe, self.fold)

    @property
    def folder(self) -> FoldFolder:
        """Files of the fold."""
        return self.project.workspace.fold(self.configuration, self.plan.recipe, self.fold)

    @property
    def model(self) -> Path:
        """The portable model that holds the fold."""
        return self.project.workspace.model(self.configuration, self.plan.recipe)

    @property
    def prepared(self) -> PreprocessedIndex:
        """Cases whose arrays are there."""
        assert self.index is not None, "arrays are prepared before this step"
        return self.index

    def on(self, index: PreprocessedIndex) -> FoldWork:
        """Return the same with prepared cases."""
        return replace(self, index=index)


def job_of(work: FoldWork, guidance: Guidance | None = None, initial: InitialWeights | None = None) -> FoldJob:
    """Return what is to be trained, for now without cases where nothing is prepared yet."""
    settings = work.settings
    if settings.init_from is not None:
        initial = InitialWeights.of(settings.init_from)
    resume = settings.resume or settings.extend
    if resume and lies(work.folder.checkpoint):
        initial = None
    return FoldJob(
        workspace=work.project.workspace,
        plan=work.plan,
        splits=work.project.splits,
        prepared=() if work.index is None else work.index.cases,
        configuration=work.configuration,
        fold=work.fold,
        epochs=settings.epochs,
        minutes=settings.minutes,
        seed=settings.seed,
        deterministic=settings.deterministic,
        resume=resume,
        extend=settings.extend,
        initial=initial,
        n_devices=settings.devices,
        guidance=guidance,
    )


def train_fold(
    work: FoldWork, guidance: Guidance | None = None, initial: InitialWeights | None = None
) -> TrainingRecord:
    """Train one fold on prepared arrays; its curves are drawn as it goes."""
    if not (work.settings.resume and lies(work.folder.record)):
        require_cases(work)
    job, watch = job_of(work, guidance, initial), work.project.watch
    board = None
    if work.settings.tensorboard:
        from segpipe.training.board import Board

        board = Board(job.folder)
    drawn_at = 0.0

    def on_epoch() -> None:
        nonlocal drawn_at
        if board:
            board.show()
        if time.monotonic() - drawn_at > CURVE_SECONDS:
            draw_curves(job.folder, work.plan)
            drawn_at = time.monotonic()

    with watch.training(f"training fold {work.fold}") as show:

        def on_iteration(status: Status) -> None:
            show(status.progress, status.remaining_s, status_line(status))

        try:
            record = train(job, work.project.runtime, Listener(on_iteration, on_epoch, watch.note))
        finally:
            if board:
                board.close()
    draw_curves(job.folder, work.plan)
    return record


def status_line(status: Status) -> str:
    """Return epoch, loss and Dice in a line; of many labels the mean and the lowest."""
    seen = [(name, dice) for name, dice in status.dice if dice is not None]
    line = f"epoch {status.epoch + 1}, loss {status.loss:.3f}"
    if not seen:
        return line
    if len(seen) > MOST_SHOWN:
        lowest = min(seen, key=lambda s: s[1])
        return f"{line}, patch Dice {status.mean_dice:.3f} (lowest {lowest[0]} {lowest[1]:.3f})"
    return f"{line}, patch Dice " + ", ".join(f"{name} {dice:.3f}" for name, dice in seen)


def require_fold(work: FoldWork, longer: str = "use --extend to train it further") -> None:
    """Raise what would stop training a fold, before arrays are prepared for it; ``longer`` says how a finished one is trained further."""
    job = job_of(work)
    require_trainable(job)
    _require_end(work, longer)
    require_first_stage(job)
    if work.settings.tensorboard:
        from segpipe.training.board import require_tensorboard

        require_tensorboard()


def require_cases(work: FoldWork) -> None:
    """Raise where preparing lost every case that a fold trains on, or every case that it holds out.

    Raises
    ------
    TrainingError
        Names the lost cases, with the reasons.
    """
    fold, prepared = work.project.splits.fold(work.fold), work.prepared
    for does, cases in (("trains on", fold.train), ("holds out", fold.validation)):
        if not set(cases) & set(prepared.cases):
            lost = "; ".join(f"{case}: {prepared.failed.get(case, 'not prepared')}" for case in cases)
            raise TrainingError(
                f"fold {work.fold}: every case that it {does} was lost ({lost}); mend one of these cases, leave them out of the "
                "dataset, or give another --fold"
            )


def _require_end(work: FoldWork, longer: str) -> None:
    """Raise where the end that is asked for is not that of a finished fold; report what else of the options is not followed."""
    settings, folder = work.settings, work.folder
    if not (settings.resume or settings.extend):
        return
    note = work.project.watch.note
    if settings.init_from is not None and lies(folder.checkpoint):
        note(f"--init-from {settings.init_from} was not followed: fold {work.fold} continues from its own checkpoint")
    if not lies(folder.record):
        return
    record = TrainingRecord.read(folder.record)
    if settings.extend:
        require_longer(record, epochs=settings.epochs, minutes=settings.minutes)
        return
    require_followed(record, epochs=settings.epochs, minutes=settings.minutes, instead=longer)
    if settings.deterministic != record.deterministic:
        asked = "--deterministic" if settings.deterministic else "training without --deterministic"
        note(f"{asked} was not followed: fold {work.fold} is finished")


def doubt_of_folds(path: Path, folds: tuple[str, ...], fold: int | str, workspace: Workspace) -> str | None:
    """Return why the held-out cases of a fold may not be new to some folds of a model; None where they are."""
    if fold == "all":
        return None
    if folds != (str(fold),):
        return (
            f"fold(s) {', '.join(folds)}: may have seen the cases that fold {fold} holds out, and scores flatter then"
        )
    if not real_path(path).is_relative_to(real_path(workspace.root)):
        return f"its fold {fold} is taken for the one that held out the same cases, which the file cannot show"
    return None
