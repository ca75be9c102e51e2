"""The stage: prepared arrays in, weights and their record out."""

import platform
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from segpipe import seeds
from segpipe.augment.spec import default_spec
from segpipe.dataset.splits import Fold, Splits
from segpipe.errors import TrainingError
from segpipe.modelfile import ModelFile, file_sha256
from segpipe.networks.build import build_network
from segpipe.planning.schema import Configuration, Plan
from segpipe.runtime import Runtime
from segpipe.training.checkpoint import Progress
from segpipe.training.data import BatchSource, open_cases
from segpipe.training.loop import Status, Trainer, mean_dice
from segpipe.training.schedule import make_schedule
from segpipe.training.schema import TrainingRecord
from segpipe.workspace import FoldFolder, Workspace


def train(
    workspace: Workspace,
    plan: Plan,
    splits: Splits,
    prepared: tuple[str, ...],
    *,
    configuration: str,
    runtime: Runtime,
    fold: int | str = 0,
    epochs: int | None = None,
    minutes: float | None = None,
    seed: int = 0,
    deterministic: bool = False,
    resume: bool = False,
    on_iteration: Callable[[Status], None] = lambda _: None,
) -> TrainingRecord:
    """Train one fold of one configuration.

    Parameters
    ----------
    workspace : Workspace
    plan : Plan
    splits : Splits
    prepared : tuple of str
        Cases whose arrays are there.
    configuration : str
    runtime : Runtime
    fold : int or "all"
        Fold to hold out; "all" trains on every case.
    epochs, minutes : optional
        End of training instead of the recipe's; minutes wins.
    seed : int
        Of weights, patches and augmentation.
    deterministic : bool
        Recorded; the runtime carries it out.
    resume : bool
        Continue an interrupted fold, or keep a finished one.
    on_iteration : callable
        Told the status after each iteration.

    Raises
    ------
    TrainingError
        If the fold was trained before and ``resume`` is not given, or nothing can be trained on.
    TrainingInterrupted
        When a signal asked to stop.
    """
    chosen = plan.configuration(configuration)
    require_trainable(workspace, plan, splits, configuration, fold, resume=resume)
    folder = workspace.fold(configuration, plan.recipe, fold)
    if folder.record.is_file() and resume:
        finished = _finished(folder, plan, splits)
        pack_model(workspace, plan, configuration)
        return finished
    if not resume:
        folder.log.unlink(missing_ok=True)
    cases = splits.fold(fold)
    usable = Fold(
        train=tuple(c for c in cases.train if c in prepared),
        validation=tuple(c for c in cases.validation if c in prepared),
    )
    trainer = _make_trainer(workspace, plan, chosen, usable, folder, runtime, (epochs, minutes), seed)
    trainer.identity = {"plan": plan.digest(), "splits": splits.digest(), "seed": str(seed)}
    trainer.on_iteration = on_iteration
    state = trainer.run(resume=resume)
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in trainer.network.state_dict().items()}
    _save_weights(weights, folder.weights)
    record = TrainingRecord(
        plan_digest=plan.digest(),
        splits_digest=splits.digest(),
        configuration=configuration,
        variant=plan.recipe,
        fold=fold,
        seed=seed,
        deterministic=deterministic,
        device=runtime.describe(),
        epochs=state.epoch,
        iterations=state.iteration,
        elapsed_s=round(state.elapsed_s, 2),
        data_wait_share=state.waited_s / max(state.elapsed_s, 1e-9),
        train_loss=state.train_loss,
        **_scores(plan, state),
        mirror_axes=tuple(range(chosen.dims)) if plan.training.mirror else (),
        weights_sha256=file_sha256(folder.weights),
        versions={"segpipe": version("segpipe"), "torch": torch.__version__, "python": platform.python_version()},
    )
    record.write(folder.record)
    pack_model(workspace, plan, configuration)
    return record


def pack_model(workspace: Workspace, plan: Plan, configuration: str) -> Path:
    """Pack every finished fold of a variant into its portable model."""
    root = workspace.variant(configuration, plan.recipe)
    folders = [FoldFolder(p) for p in sorted(root.glob("fold_*")) if FoldFolder(p).record.is_file()]
    records = [TrainingRecord.read(f.record) for f in folders]
    current = [(f, r) for f, r in zip(folders, records, strict=True) if r.plan_digest == plan.digest()]
    model = ModelFile(
        plan_json=plan.to_json(),
        configuration=configuration,
        variant=plan.recipe,
        mirror_axes=current[0][1].mirror_axes,
        folds={str(r.fold): load_file(f.weights) for f, r in current},
    )
    path = workspace.model(configuration, plan.recipe)
    model.write(path)
    return path


def require_trainable(
    workspace: Workspace, plan: Plan, splits: Splits, configuration: str, fold: int | str, *, resume: bool
) -> None:
    """Raise what would stop this training, before any work is done for it.

    Raises
    ------
    TrainingError, DatasetError, PlanError
        If the configuration cannot be trained, there is no such fold, or it was trained before and not resumed.
    """
    splits.fold(fold)
    _require_network(plan.configuration(configuration))
    folder = workspace.fold(configuration, plan.recipe, fold)
    if folder.checkpoint.is_file() and not resume:
        raise TrainingError(
            f"{folder.root}: this fold was trained before; give --resume to continue it, another --work, "
            "or delete the folder to start afresh"
        )


def _require_network(configuration: Configuration) -> None:
    if len(configuration.network.features) < 2:
        raise TrainingError(
            f"configuration {configuration.name!r}: the median image {configuration.median_shape} is too small to pool even once "
            "(8 voxels along an axis are needed); plan with a finer --spacing"
        )
    if configuration.previous_stage is not None:
        raise TrainingError(
            f"configuration {configuration.name!r} needs the segmentations of {configuration.previous_stage!r} as input, "
            "which this version does not train on; choose 3d_fullres, 3d_lowres or 2d"
        )


def _finished(folder: FoldFolder, plan: Plan, splits: Splits) -> TrainingRecord:
    record = TrainingRecord.read(folder.record)
    if (record.plan_digest, record.splits_digest) != (plan.digest(), splits.digest()):
        raise TrainingError(
            f"{folder.root}: was trained with another plan or other splits; use another --work, or delete the folder to train it afresh"
        )
    return record


def _make_trainer(
    workspace: Workspace,
    plan: Plan,
    configuration: Configuration,
    cases: Fold,
    folder: FoldFolder,
    runtime: Runtime,
    end: tuple[int | None, float | None],
    seed: int,
) -> Trainer:
    settings, patch, batch = plan.training, configuration.patch_size, configuration.batch_size
    arrays = workspace.preprocessed(configuration.name)
    masked = tuple(c for c, used in enumerate(configuration.use_mask_for_norm) if used)
    augmentation = (
        default_spec(patch, mirror=settings.mirror, masked_channels=masked) if settings.augmentation else None
    )
    share = settings.foreground_share
    torch.manual_seed(int(seeds.stream(seed, "weights").integers(2**62)))
    return Trainer(
        network=build_network(configuration.network, len(plan.channel_names), plan.labels.n_outputs),
        training=BatchSource(open_cases(arrays, cases.train), patch, batch, share, augmentation, seed, "training"),
        validation=BatchSource(open_cases(arrays, cases.validation), patch, batch, share, None, seed, "validation"),
        labels=plan.labels,
        batch_dice=configuration.batch_dice,
        settings=settings,
        schedule=make_schedule(settings, len(cases.train), batch, epochs=end[0], minutes=end[1]),
        runtime=runtime,
        folder=folder,
        identity={},
    )


def _scores(plan: Plan, state: Progress) -> dict[str, object]:
    by_label = dict(zip(plan.labels.names, state.validation_dice, strict=True))
    return {"validation_dice": by_label, "mean_validation_dice": mean_dice(state.validation_dice)}


def _save_weights(weights: dict[str, torch.Tensor], path: Path) -> None:
    partial = path.with_name(f".partial.{path.name}")
    save_file(weights, partial)
    partial.replace(path)
