"""Commands on data, plans, training and scores as Python functions, for scripts and notebooks; those on models are in `segpipe.models`.

A dataset's workspace (``work``) is ``runs/<dataset name>`` in the current folder unless another is given.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from segpipe.errors import SegpipeError
from segpipe.held_out import HeldOut, prepare_first_stage, score_held_out
from segpipe.steps import (
    SILENT,
    FoldSettings,
    PathLike,
    alone_in,
    configuration_of,
    current_plan,
    fingerprint,
    make_plan,
    plan_for_network,
    prepare_arrays,
    recipe_for,
    require_fold,
    train_fold,
    workspace_of,
)
from segpipe.watch import Watch
from segpipe.workspace import FoldFolder, Workspace

if TYPE_CHECKING:
    from segpipe.dataset.convert import Converted
    from segpipe.dataset.run import CheckResult
    from segpipe.evaluation.schema import Evaluation
    from segpipe.jobs import Workers
    from segpipe.network_costs import NetworkCost
    from segpipe.planning.schema import Plan
    from segpipe.preprocessing.schema import PreprocessedIndex
    from segpipe.training.schema import TrainingRecord


@dataclass(frozen=True)
class Trained:
    """What ``train`` made."""

    record: TrainingRecord
    model: Path
    folder: FoldFolder
    held_out: HeldOut | None = None
    """Scores of the held-out cases; None where none was held out."""


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

    workspace = workspace_of(dataset, work)
    with alone_in(workspace, watch), watch.counting("checking", None) as done:
        return stage(dataset, workspace, resample_channels=resample_channels, jobs_limit=jobs, on_case=done)


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
    workspace = workspace_of(dataset, work)
    if budget_gb == "auto":
        from segpipe.runtime import choose_runtime, free_gb

        budget_gb = free_gb(choose_runtime().device)
        watch.note(f"--budget-gb auto: {budget_gb:.1f} GB")
    with alone_in(workspace, watch):
        measured = fingerprint(dataset, workspace, resample_channels=resample_channels, jobs=jobs, watch=watch)
        return make_plan(measured, workspace, recipe=recipe, budget_gb=budget_gb, spacing_mm=spacing_mm)


def preprocess(
    dataset: PathLike,
    *,
    work: PathLike | None = None,
    configuration: str | None = None,
    cluster: str | None = None,
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
    cluster : str, optional
        Address of a Dask scheduler, or ``slurm``: its workers read and prepare the cases; all see the same files under the same paths.
    jobs : int, optional
        Most worker processes; of SLURM, workers that are asked for.
    watch : Watch
        Told of progress.
    """
    workspace = workspace_of(dataset, work)
    with ExitStack() as opened:
        workers: Workers = jobs
        if cluster is not None:
            from segpipe.jobs import open_executor

            workers = opened.enter_context(open_executor(cluster, jobs or 1))
            workspace, dataset = Workspace(workspace.root.resolve()), Path(dataset).resolve()
        opened.enter_context(alone_in(workspace, watch))
        current = current_plan(dataset, workspace, workers, watch)
        return prepare_arrays(workspace, current, configuration or current.default_configuration(), workers, watch)


def train(
    dataset: PathLike,
    *,
    work: PathLike | None = None,
    configuration: str | None = None,
    network: str | None = None,
    fold: int | str = 0,
    epochs: int | None = None,
    minutes: float | None = None,
    device: str = "auto",
    jobs: int | None = None,
    seed: int = 0,
    deterministic: bool = False,
    devices: int = 1,
    init_from: PathLike | None = None,
    tta: bool = True,
    tolerance_mm: float = 1.0,
    tensorboard: bool = False,
    resume: bool = False,
    watch: Watch = SILENT,
) -> Trained:
    """Train one fold, then predict and score its held-out cases whole; plans and preprocesses first what is not there yet.

    Parameters
    ----------
    dataset : path
        Folder or manifest.
    work : path, optional
        The workspace; its plan is used, or one is made by the recipe that suits the device.
    configuration : str, optional
        The plan's 3d_fullres (2d where there is none) unless given.
    network : str, optional
        A network instead of the plan's, as NAME or NAME:key=value,...; patch and batch are planned for it.
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
    devices : int
        Devices to train on together, each with its share of the batch.
    init_from : path, optional
        A model.segpipe, or a file of bare weights (.pth, .safetensors), to begin with. Where the workspace has no plan, the
        model's is taken over; where it has one, what fits is loaded and the rest is told.
    tta : bool
        Average the predictions of the held-out cases over mirrored images.
    tolerance_mm : float
        Of the normalised surface Dice.
    tensorboard : bool
        Write TensorBoard events beside the log.
    resume : bool
        Continue an interrupted fold; a finished one is kept.
    watch : Watch
        Told of progress.
    """
    from segpipe.runtime import choose_runtime, require_devices

    settings = FoldSettings(
        fold=fold,
        epochs=epochs,
        minutes=minutes,
        seed=seed,
        deterministic=deterministic,
        resume=resume,
        devices=devices,
        init_from=init_from,
        tensorboard=tensorboard,
    )
    runtime = choose_runtime(device, deterministic=deterministic)
    require_devices(runtime.device, devices)
    workspace = workspace_of(dataset, work)
    with alone_in(workspace, watch):
        base = current_plan(dataset, workspace, jobs, watch, recipe=recipe_for(runtime), init_from=init_from)
        current = plan_for_network(workspace, base, network, watch)
        chosen = configuration or configuration_of(init_from, current)
        require_fold(workspace, current, chosen, settings)
        # By the workspace's plan: a network changes patches, not the arrays they are cut from.
        index = prepare_arrays(workspace, base, chosen, jobs, watch)
        index = prepare_first_stage(workspace, current, index, chosen, runtime, jobs=jobs, watch=watch)
    watch.note(f"training on {runtime.describe()}")
    record = train_fold(workspace, current, index, runtime, settings, configuration=chosen, watch=watch)
    model, folder = workspace.model(chosen, current.recipe), workspace.fold(chosen, current.recipe, fold)
    if fold == "all":
        watch.note("fold all holds out no case: there is nothing to validate on")
        return Trained(record, model, folder)
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
    return Trained(record, model, folder, held_out)


def list_networks(
    dataset: PathLike | None = None,
    *,
    names: tuple[str, ...] = (),
    work: PathLike | None = None,
    configuration: str | None = None,
    device: str = "auto",
    jobs: int | None = None,
    watch: Watch = SILENT,
) -> list[NetworkCost]:
    """List the networks; for a dataset with what each costs at the patch and batch that would be planned for it.

    Parameters
    ----------
    dataset : path, optional
        Folder or manifest. Without one, names only.
    names : tuple of str
        NAME or NAME:key=value,...; those that come with segpipe, those of installed packages and MONAI's best known unless given.
    work : path, optional
        The workspace; its plan is used, or one is made by the recipe that suits the device.
    configuration : str, optional
        The plan's 3d_fullres (2d where there is none) unless given.
    device : str
        Where steps are timed.
    jobs : int, optional
        Most worker processes.
    watch : Watch
        Told of progress.
    """
    from segpipe.network_costs import named_network, network_cost
    from segpipe.networks.catalogue import network_names

    chosen = names or tuple(network_names())
    if dataset is None:
        return [named_network(name) for name in chosen]
    from segpipe.fingerprint.schema import Fingerprint
    from segpipe.runtime import choose_runtime

    runtime, workspace = choose_runtime(device), workspace_of(dataset, work)
    with alone_in(workspace, watch):
        base = current_plan(dataset, workspace, jobs, watch, recipe=recipe_for(runtime))
    where, measured = configuration or base.default_configuration(), Fingerprint.read(workspace.fingerprint)
    base.configuration(where)
    costs = []
    with watch.counting("planning and timing networks", len(chosen)) as done:
        for name in chosen:
            costs.append(network_cost(name, base, measured, where, runtime))
            done(name)
    return costs


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
