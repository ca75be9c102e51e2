"""`segpipe train`: train one fold and score its held-out cases."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from segpipe.core.progress import SILENT, Watch
from segpipe.core.workspace import FoldFolder, PathLike
from segpipe.training.settings import FoldSettings
from segpipe.workflows.fold import prepare_arrays, require_fold, train_fold
from segpipe.workflows.held_out import HeldOut, prepare_first_stage, score_held_out
from segpipe.workflows.planning import configuration_of, current_plan, plan_for_network, recipe_for
from segpipe.workflows.project import alone_in, workspace_of

if TYPE_CHECKING:
    from segpipe.training.schema import TrainingRecord


@dataclass(frozen=True)
class Trained:
    """What ``train`` made."""

    record: TrainingRecord
    model: Path
    folder: FoldFolder
    held_out: HeldOut | None = None
    """Scores of the held-out cases; None where none was held out."""


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
    from segpipe.execution.device import choose_runtime, require_devices

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
