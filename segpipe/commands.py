"""Every command as a Python function, for scripts and notebooks; the command line calls these and nothing else.

A dataset's workspace (``work``) is ``runs/<dataset name>`` in the current folder unless another is given.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from segpipe.errors import ArtefactError, SegpipeError
from segpipe.watch import Watch
from segpipe.workspace import Workspace

if TYPE_CHECKING:
    from segpipe.dataset.convert import Converted
    from segpipe.dataset.run import CheckResult
    from segpipe.dataset.splits import Splits
    from segpipe.evaluation.schema import Evaluation
    from segpipe.fingerprint.schema import Fingerprint
    from segpipe.inference.schema import PredictionRow
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


def check(
    dataset: PathLike,
    *,
    work: PathLike | None = None,
    resample_channels: bool | None = None,
    jobs: int | None = None,
    watch: Watch = SILENT,
) -> CheckResult:
    """Check every case of a dataset against every rule; the decoded cases are kept for the later stages.

    Parameters
    ----------
    dataset : path
        Folder or manifest.
    work : path, optional
        The workspace.
    resample_channels : bool, optional
        Bring channels on other grids onto the first one's, or refuse them; as the last time unless given, else refuse.
    jobs : int, optional
        Most worker processes.
    watch : Watch
        Told of progress.
    """
    from segpipe.dataset.run import check as stage

    with watch.counting("checking", None) as done:
        return stage(
            dataset, workspace_of(dataset, work), resample_channels=resample_channels, jobs_limit=jobs, on_case=done
        )


def plan(
    dataset: PathLike,
    *,
    work: PathLike | None = None,
    recipe: PathLike = "default",
    budget_gb: float | Literal["auto"] | None = None,
    spacing_mm: tuple[float, float, float] | None = None,
    resample_channels: bool | None = None,
    jobs: int | None = None,
    watch: Watch = SILENT,
) -> Plan:
    """Measure a dataset and plan for it; writes dataset.json, fingerprint.json and plan.json.

    Parameters
    ----------
    dataset : path
        Folder or manifest.
    work : path, optional
        The workspace.
    recipe : str or path
        A shipped recipe's name or a TOML file.
    budget_gb : float or "auto", optional
        Device memory to plan for, instead of the recipe's; ``auto`` takes what is free on the device that training would use.
    spacing_mm : tuple of float, optional
        Target spacing (z, y, x), instead of the planned one.
    resample_channels : bool, optional
        Bring channels on other grids onto the first one's, or refuse them; as the last time unless given, else refuse. Later stages
        and the model do the same.
    jobs : int, optional
        Most worker processes.
    watch : Watch
        Told of progress.
    """
    from segpipe.planning.run import write_plan

    workspace = workspace_of(dataset, work)
    if budget_gb == "auto":
        from segpipe.runtime import choose_runtime, free_gb

        budget_gb = free_gb(choose_runtime().device)
        watch.note(f"--budget-gb auto: {budget_gb:.1f} GB")
    measured = fingerprint(dataset, workspace, resample_channels=resample_channels, jobs=jobs, watch=watch)
    return write_plan(measured, workspace, recipe=recipe, budget_gb=budget_gb, spacing_mm=spacing_mm)


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


def preprocess(
    dataset: PathLike,
    *,
    work: PathLike | None = None,
    configuration: str | None = None,
    jobs: int | None = None,
    watch: Watch = SILENT,
) -> PreprocessedIndex:
    """Prepare the dataset's usable cases for one configuration; what is prepared already is kept.

    Parameters
    ----------
    dataset : path
        Folder or manifest.
    work : path, optional
        The workspace; its plan is used, or the default plan is made.
    configuration : str, optional
        The plan's 3d_fullres (2d where there is none) unless given.
    jobs : int, optional
        Most worker processes.
    watch : Watch
        Told of progress.
    """
    workspace = workspace_of(dataset, work)
    current = _current_plan(dataset, workspace, jobs, watch)
    return prepare_arrays(workspace, current, configuration or current.default_configuration(), jobs, watch)


def train(
    dataset: PathLike,
    *,
    work: PathLike | None = None,
    configuration: str | None = None,
    fold: int | str = 0,
    epochs: int | None = None,
    minutes: float | None = None,
    device: str = "auto",
    jobs: int | None = None,
    seed: int = 0,
    deterministic: bool = False,
    resume: bool = False,
    watch: Watch = SILENT,
) -> TrainingRecord:
    """Train one fold; plans and preprocesses first what is not there yet.

    Parameters
    ----------
    dataset : path
        Folder or manifest.
    work : path, optional
        The workspace; its plan is used, or the default plan is made.
    configuration : str, optional
        The plan's 3d_fullres (2d where there is none) unless given.
    fold : int or "all"
        Fold to hold out; "all" trains on every case.
    epochs, minutes : optional
        End of training, instead of the recipe's.
    device : str
        auto, cpu, cuda or cuda:N.
    jobs : int, optional
        Most worker processes in preprocessing.
    seed : int
        Of weights, patches and augmentation.
    deterministic : bool
        The same bytes twice on the same machine.
    resume : bool
        Continue an interrupted fold; a finished one is kept.
    watch : Watch
        Told of progress.
    """
    from segpipe.runtime import choose_runtime

    require_one_end(epochs, minutes)
    runtime = choose_runtime(device, deterministic=deterministic)
    workspace = workspace_of(dataset, work)
    current = _current_plan(dataset, workspace, jobs, watch)
    chosen = configuration or current.default_configuration()
    require_fold(workspace, current, chosen, fold, resume=resume)
    index = prepare_arrays(workspace, current, chosen, jobs, watch)
    return train_fold(
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


def predict(
    source: PathLike,
    output: PathLike,
    *,
    model: PathLike,
    folds: tuple[str, ...] = (),
    tta: bool = True,
    device: str = "auto",
    resume: bool = False,
    watch: Watch = SILENT,
) -> list[PredictionRow]:
    """Segment images; each result lies on its image's own grid, with its header. A bad case is reported and passed over.

    Parameters
    ----------
    source : path
        An image, a folder of images, or a manifest.
    output : path
        Folder for the segmentations and predictions.jsonl (or one file, for one image).
    model : path
        A model.segpipe file, or the folder that holds one.
    folds : tuple of str
        Folds to ensemble; empty for all that the model has.
    tta : bool
        Average over mirrored images.
    device : str
        auto, cpu, cuda or cuda:N.
    resume : bool
        Skip cases that this model has done already.
    watch : Watch
        Told of progress.
    """
    from segpipe.inference.inputs import find_inputs
    from segpipe.inference.predictor import Predictor
    from segpipe.inference.run import predict as stage
    from segpipe.io.formats import ending_of
    from segpipe.runtime import choose_runtime

    target = Path(output)
    predictor = Predictor.load(Path(model), choose_runtime(device), folds=folds, tta=tta)
    cases = find_inputs(Path(source), target, len(predictor.plan.channel_names))
    log = (target.parent if ending_of(target) else target) / "predictions.jsonl"
    with watch.counting("predicting", len(cases)) as done:
        return stage(cases, predictor, log, resume=resume, on_case=lambda row: done(row.case))


def convert(source: PathLike, output: PathLike, *, watch: Watch = SILENT) -> list[Converted]:
    """Write every regular DICOM series of a folder as NIfTI with a sidecar; the others are reported with their reason.

    Parameters
    ----------
    source : path
        Folder of DICOM files, at any depth.
    output : path
        Folder for the NIfTI files and their sidecars.
    watch : Watch
        Told of progress.
    """
    from segpipe.dataset.convert import convert as stage

    with watch.counting("converting", None) as done:
        return stage(Path(source), Path(output), on_series=done)


def evaluate(
    predictions: PathLike,
    references: PathLike,
    *,
    labels: PathLike | None = None,
    output: PathLike | None = None,
    tolerance_mm: float = 1.0,
    jobs: int | None = None,
    watch: Watch = SILENT,
) -> Evaluation:
    """Score segmentations against references of the same name.

    Parameters
    ----------
    predictions, references : path
        Two folders, or two files.
    labels : path, optional
        A dataset.json whose names, regions and ignored value are scored; every value but 0 unless given.
    output : path, optional
        JSON file to write.
    tolerance_mm : float
        Of the normalised surface Dice.
    jobs : int, optional
        Most worker processes.
    watch : Watch
        Told of progress.
    """
    from segpipe.dataset.match import read_labels_file
    from segpipe.evaluation.run import evaluate as stage
    from segpipe.evaluation.run import match_pairs

    declared = None if labels is None else read_labels_file(Path(labels))
    pairs, missing = match_pairs(Path(predictions), Path(references))
    with watch.counting("scoring", len(pairs)) as done:
        result = stage(
            pairs,
            declared,
            missing=missing,
            tolerance_mm=tolerance_mm,
            jobs_limit=jobs,
            on_case=done,
        )
    if output is not None:
        result.write(Path(output))
    return result


def report(work: PathLike) -> Path:
    """Write the report of a workspace from its latest evaluation; returns the page.

    Parameters
    ----------
    work : path
        A workspace in which ``run`` has finished.
    """
    from segpipe.reporting.run import report as stage

    return stage(Workspace(Path(work)))


def demo(folder: PathLike) -> Path:
    """Write the demo dataset of drawn organs into a folder; returns the folder.

    Parameters
    ----------
    folder : path
        Created when missing; must not hold another dataset.
    """
    from segpipe.phantoms import write_phantoms

    target = Path(folder)
    if target.exists() and any(target.iterdir()):
        raise SegpipeError(f"{target}: is not empty; give a new folder for the demo dataset")
    write_phantoms(target)
    return target


def _current_plan(dataset: PathLike, workspace: Workspace, jobs: int | None, watch: Watch) -> Plan:
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
