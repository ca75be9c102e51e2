"""Steps that several commands share: they run a stage on a workspace, and tell the watch."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from segpipe.errors import ArtefactError, SegpipeError
from segpipe.watch import Watch
from segpipe.workspace import Workspace

if TYPE_CHECKING:
    from segpipe.dataset.splits import Splits
    from segpipe.fingerprint.schema import Fingerprint
    from segpipe.planning.schema import Plan
    from segpipe.preprocessing.schema import PreprocessedIndex
    from segpipe.runtime import Runtime
    from segpipe.training.schema import TrainingRecord

PathLike = Path | str
SILENT = Watch()


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
    jobs: int | None = None,
    watch: Watch = SILENT,
) -> Fingerprint:
    """Check and measure a dataset; writes dataset.json, fingerprint.json and the decoded cases."""
    from segpipe.fingerprint.run import fingerprint as stage

    with watch.counting("checking and measuring", None) as done:
        return stage(dataset, workspace, resample_channels=resample_channels, jobs_limit=jobs, on_case=done)


def current_plan(dataset: PathLike, workspace: Workspace, jobs: int | None, watch: Watch) -> Plan:
    """Return the workspace's plan, or make the default one where there is none."""
    from segpipe.planning.run import read_plan

    fingerprint(dataset, workspace, jobs=jobs, watch=watch)
    if not workspace.plan.is_file():
        watch.note(f"no plan in {workspace.root} yet: planning with the default recipe")
        from segpipe.fingerprint.schema import Fingerprint
        from segpipe.planning.run import write_plan

        return write_plan(Fingerprint.read(workspace.fingerprint), workspace)
    return read_plan(workspace)


def prepare_arrays(
    workspace: Workspace, current: Plan, configuration: str, jobs: int | None, watch: Watch
) -> PreprocessedIndex:
    """Prepare the arrays of a configuration; a case that fails is noted, and that all fail is an error."""
    from segpipe.fingerprint.schema import Fingerprint
    from segpipe.preprocessing.run import preprocess as stage

    total = len(Fingerprint.read(workspace.fingerprint).cases)
    with watch.counting(f"preprocessing for {configuration}", total) as done:
        index = stage(workspace, current, configuration=configuration, jobs_limit=jobs, on_case=done)
    for case, reason in index.failed.items():
        watch.note(f"preprocessing: {case}: {reason}")
    if not index.cases:
        raise ArtefactError(
            f"{workspace.preprocessed(configuration)}: no case could be prepared; the reasons are above"
        )
    return index


def train_fold(
    workspace: Workspace,
    current: Plan,
    index: PreprocessedIndex,
    runtime: Runtime,
    *,
    fold: int | str,
    epochs: int | None,
    minutes: float | None,
    seed: int,
    deterministic: bool,
    resume: bool,
    watch: Watch,
) -> TrainingRecord:
    """Train one fold on prepared arrays, telling the watch."""
    from segpipe.fingerprint.schema import Fingerprint
    from segpipe.training.loop import Status
    from segpipe.training.run import train as stage

    with watch.training(f"training fold {fold}") as show:

        def on_iteration(status: Status) -> None:
            dice = "" if status.mean_dice is None else f", patch Dice {status.mean_dice:.3f}"
            show(status.progress, status.remaining_s, f"epoch {status.epoch + 1}, loss {status.loss:.3f}{dice}")

        return stage(
            workspace,
            current,
            splits_of(workspace, Fingerprint.read(workspace.fingerprint)),
            index.cases,
            configuration=index.configuration,
            runtime=runtime,
            fold=fold,
            epochs=epochs,
            minutes=minutes,
            seed=seed,
            deterministic=deterministic,
            resume=resume,
            on_iteration=on_iteration,
        )


def require_fold(workspace: Workspace, current: Plan, configuration: str, fold: int | str, *, resume: bool) -> None:
    """Raise what would stop training a fold, before arrays are prepared for it."""
    from segpipe.fingerprint.schema import Fingerprint
    from segpipe.training.run import require_trainable

    splits = splits_of(workspace, Fingerprint.read(workspace.fingerprint))
    require_trainable(workspace, current, splits, configuration, fold, resume=resume)


def splits_of(workspace: Workspace, measured: Fingerprint) -> Splits:
    """Splits of the fingerprint's cases, made when they are not there."""
    from segpipe.dataset.splits import read_or_make

    return read_or_make(workspace.splits, measured.groups, measured.digest())


def require_one_end(epochs: int | None, minutes: float | None) -> None:
    """Raise unless at most one end of training is given."""
    if epochs is not None and minutes is not None:
        raise SegpipeError(f"--epochs {epochs} and --minutes {minutes:g} are two ends of training; give one of them")
