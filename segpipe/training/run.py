"""The stage: prepared arrays in, weights and their record out."""

import platform
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors.torch import load_file, save

from segpipe import seeds
from segpipe.artefact import write_atomically
from segpipe.augment.spec import default_spec
from segpipe.dataset.splits import Fold, Splits
from segpipe.errors import TrainingError
from segpipe.locks import locked
from segpipe.modelfile import ModelFile, file_sha256
from segpipe.networks.build import build_network
from segpipe.planning.schema import Configuration, Plan
from segpipe.runtime import Runtime
from segpipe.training.data import BatchSource, sampling
from segpipe.training.initial import InitialWeights, take_over
from segpipe.training.loop import Trainer
from segpipe.training.progress import Progress, Status, mean_dice
from segpipe.training.ranks import ALONE, Ranks
from segpipe.training.schedule import make_schedule
from segpipe.training.schema import TrainingRecord
from segpipe.training.storage import choose_place, open_cases, placed
from segpipe.workspace import FoldFolder, Workspace

# Readers beyond these only fight for the processor with each other.
_MOST_READERS = 4


@dataclass(frozen=True)
class Job:
    """One fold to train: what it is and how it is to be done. Picklable, so that several processes can share it."""

    workspace: Workspace
    plan: Plan
    splits: Splits
    prepared: tuple[str, ...]
    """Cases whose arrays are there."""
    configuration: str
    fold: int | str = 0
    """Fold to hold out; "all" trains on every case."""
    epochs: int | None = None
    minutes: float | None = None
    """End of training instead of the recipe's."""
    seed: int = 0
    deterministic: bool = False
    resume: bool = False
    """Continue an interrupted fold, or keep a finished one."""
    initial: InitialWeights | None = None
    """Weights to begin with."""
    device: str = "auto"
    n_devices: int = 1

    @property
    def folder(self) -> FoldFolder:
        """Where the fold is kept."""
        return self.workspace.fold(self.configuration, self.plan.recipe, self.fold)

    @property
    def identity(self) -> dict[str, str]:
        """What a checkpoint must have been trained with to be continued."""
        return {"plan": self.plan.digest(), "splits": self.splits.digest(), "seed": str(self.seed)}


@dataclass(frozen=True)
class Listener:
    """Who is told what happens."""

    on_iteration: Callable[[Status], None] = lambda _: None
    on_epoch: Callable[[], None] = lambda: None
    note: Callable[[str], None] = lambda _: None


def train(job: Job, runtime: Runtime, listener: Listener | None = None) -> TrainingRecord:
    """Train one fold of one configuration on one device or several.

    Parameters
    ----------
    job : Job
    runtime : Runtime
    listener : Listener, optional

    Raises
    ------
    TrainingError
        If the fold was trained before and ``resume`` is not given, or nothing can be trained on.
    TrainingInterrupted
        When a signal asked to stop.
    LockedError
        If another process trains this fold.
    """
    told = listener or Listener()
    require_trainable(job)
    with locked(job.folder.root, wait=False):
        _sweep(job.folder)
        record = _finished(job) if job.resume and job.folder.record.is_file() else None
        if record is None:
            if not job.resume:
                job.folder.log.unlink(missing_ok=True)
            if job.n_devices == 1:
                record = train_here(job, runtime, told)
            else:
                from segpipe.training.launch import train_on_devices

                record = train_on_devices(job, runtime, told)
    pack_model(job.workspace, job.plan, job.configuration)
    return record


def train_here(
    job: Job,
    runtime: Runtime,
    listener: Listener,
    ranks: Ranks = ALONE,
    distribute: Callable[[torch.nn.Module], torch.nn.Module] | None = None,
) -> TrainingRecord:
    """Train in this process, alone or as one of several; the first of them writes weights and record."""
    trainer = make_trainer(job, runtime, listener, ranks)
    trainer.distribute = distribute
    try:
        progress = trainer.run(resume=job.resume)
        record = _record(job, runtime, progress)
        if ranks.first:
            weights = {name: p.detach().cpu().contiguous() for name, p in trainer.network.state_dict().items()}
            write_atomically(job.folder.weights, save(weights))
            record = record.model_copy(update={"weights_sha256": file_sha256(job.folder.weights)})
            record.write(job.folder.record)
    except OSError as error:
        raise TrainingError(
            f"{job.folder.root}: cannot be written ({error.strerror or error}); the last checkpoint is whole: "
            "make room, then continue with --resume"
        ) from error
    return record


def pack_model(workspace: Workspace, plan: Plan, configuration: str) -> Path:
    """Pack every finished fold of a variant into its portable model, with that of the stage before it in a cascade."""
    root = workspace.variant(configuration, plan.recipe)
    # Two folds may end at the same time: each packs what the other left.
    with locked(root, wait=True):
        folders = [FoldFolder(p) for p in sorted(root.glob("fold_*")) if FoldFolder(p).record.is_file()]
        records = [TrainingRecord.read(f.record) for f in folders]
        current = [(f, r) for f, r in zip(folders, records, strict=True) if r.plan_digest == plan.digest()]
        before = plan.configuration(configuration).previous_stage
        model = ModelFile(
            plan_json=plan.to_json(),
            configuration=configuration,
            variant=plan.recipe,
            mirror_axes=current[0][1].mirror_axes,
            folds={str(r.fold): load_file(f.weights) for f, r in current},
            previous=None if before is None else ModelFile.read(workspace.model(before, plan.recipe)),
        )
        path = workspace.model(configuration, plan.recipe)
        model.write(path)
    return path


def require_trainable(job: Job) -> None:
    """Raise what would stop this training, before any work is done for it.

    Raises
    ------
    TrainingError, DatasetError, PlanError
        If the configuration cannot be trained, there is no such fold, or it was trained before and not resumed.
    """
    fold = job.splits.fold(job.fold)
    chosen = job.plan.configuration(job.configuration)
    _require_network(chosen)
    if job.plan.training.patience_epochs is not None and not fold.holds_out:
        raise TrainingError(
            f"fold {job.fold!r} holds out no case, so training.patience_epochs has nothing to judge by; "
            "leave it out of the recipe, or train a numbered fold"
        )
    if job.n_devices > chosen.batch_size:
        raise TrainingError(
            f"--devices {job.n_devices}: a batch of {job.configuration} has {chosen.batch_size} patches, at least one a device; "
            f"use --devices {chosen.batch_size} or fewer"
        )
    folder = job.folder
    if folder.checkpoint.is_file() and not job.resume:
        raise TrainingError(
            f"{folder.root}: this fold was trained before; give --resume to continue it, another --work, "
            "or delete the folder to start afresh"
        )


def require_first_stage(job: Job) -> None:
    """Raise if a cascade's first stage is not there: its second stage learns from what each fold found in the cases it held out.

    Raises
    ------
    TrainingError
        Naming the folds that are missing.
    """
    first = job.plan.configuration(job.configuration).previous_stage
    if first is None:
        return
    missing = []
    for fold in range(len(job.splits.folds)):
        record = job.workspace.fold(first, job.plan.recipe, fold).record
        if not record.is_file() or TrainingRecord.read(record).plan_digest != job.plan.digest():
            missing.append(fold)
    if missing:
        commands = " ".join(f"`segpipe train DATASET -c {first} --fold {fold}`" for fold in missing)
        raise TrainingError(
            f"configuration {job.configuration!r} learns from what every fold of {first!r} finds in the cases it held out; "
            f"train first: {commands}"
        )


def _require_network(configuration: Configuration) -> None:
    if len(configuration.network.features) < 2:
        raise TrainingError(
            f"configuration {configuration.name!r}: the median image {configuration.median_shape} is too small to pool even once "
            "(8 voxels along an axis are needed); plan with a finer --spacing"
        )


def _sweep(folder: FoldFolder) -> None:
    """Take away what a killed process was writing; whoever holds the lock is the only one that writes."""
    for file in (folder.checkpoint, folder.weights, folder.record, folder.log):
        for left in folder.root.glob(f".{file.name}.*"):
            left.unlink()


def _finished(job: Job) -> TrainingRecord:
    record = TrainingRecord.read(job.folder.record)
    if (record.plan_digest, record.splits_digest) != (job.plan.digest(), job.splits.digest()):
        raise TrainingError(
            f"{job.folder.root}: was trained with another plan or other splits; use another --work, or delete the folder to train it afresh"
        )
    return record


def make_trainer(job: Job, runtime: Runtime, listener: Listener, ranks: Ranks = ALONE) -> Trainer:
    """Return the trainer of a job, with its data where they are read fastest."""
    plan, configuration = job.plan, job.plan.configuration(job.configuration)
    settings, batch = plan.training, configuration.batch_size
    held = job.splits.fold(job.fold)
    usable = Fold(
        train=tuple(c for c in held.train if c in job.prepared),
        validation=tuple(c for c in held.validation if c in job.prepared),
    )
    n_previous = 0 if configuration.previous_stage is None else len(plan.labels.values) - 1
    masked = tuple(c for c, used in enumerate(configuration.use_mask_for_norm) if used)
    chosen = settings.augmentation
    spec = default_spec(
        configuration.patch_size,
        mirror_axes=plan.mirror_axes_of(configuration),
        masked_channels=masked,
        settings=chosen,
    )
    arrays = job.workspace.preprocessed(plan.arrays_of(configuration.name))
    previous = job.workspace.preprocessed(configuration.name) if n_previous else None
    cases = {name: open_cases(arrays, getattr(usable, name), previous) for name in ("train", "validation")}
    place = choose_place(
        cases["train"] + cases["validation"],
        # TorchIO's artefacts work on the CPU: nothing is won by data on a GPU.
        torch.device("cpu") if chosen.enabled and chosen.artefacts else runtime.device,
        reserved_bytes=1.5e9 * configuration.estimated_memory_gb,
        sharers=ranks.world,
    )
    n_readers = min(_MOST_READERS, torch.get_num_threads()) if place == "disk" or chosen.artefacts else 1
    if ranks.first:
        where = {"device": "on the device", "memory": "in memory", "disk": f"on disk, read by {n_readers} thread(s)"}
        listener.note(f"{len(usable.train)} training and {len(usable.validation)} held-out cases {where[place]}")
    weights = tuple(settings.foreground_weights.get(name, 1.0) for name in plan.labels.names)
    how = sampling(configuration.patch_size, batch, settings.foreground_share, weights)

    def source(name: str, stream: str) -> BatchSource:
        return BatchSource(
            placed(cases[name], place, runtime.device),
            how,
            spec if chosen.enabled and name == "train" else None,
            seed=job.seed,
            name=stream,
            flat=configuration.dims == 2,
            n_previous=n_previous,
            share=ranks.share(batch),
        )

    torch.manual_seed(int(seeds.stream(job.seed, "weights").integers(2**62)))
    network = build_network(configuration.network, len(plan.channel_names) + n_previous, plan.labels.n_outputs)
    begun_with = None
    if job.initial is not None and not (job.resume and job.folder.checkpoint.is_file()):
        begun_with = job.initial.describe()
        left = take_over(network, job.initial)
        if ranks.first:
            listener.note(f"weights to begin with: {begun_with}; {len(left)} not taken")
            for reason in left:
                listener.note(f"  {reason}")
    return Trainer(
        network=network,
        training=source("train", "training"),
        validation=source("validation", "validation"),
        labels=plan.labels,
        batch_dice=configuration.batch_dice,
        settings=settings,
        schedule=make_schedule(settings, len(usable.train), batch, epochs=job.epochs, minutes=job.minutes),
        runtime=runtime,
        folder=job.folder,
        identity=job.identity,
        n_readers=n_readers,
        begun_with=begun_with,
        # What is faster today may not be tomorrow: not where the same bytes are wanted twice.
        compile_if_faster=not job.deterministic,
        on_iteration=listener.on_iteration,
        on_epoch=listener.on_epoch,
        note=listener.note if ranks.first else lambda _: None,
        ranks=ranks,
    )


def _record(job: Job, runtime: Runtime, progress: Progress) -> TrainingRecord:
    plan = job.plan
    devices = f"{job.n_devices} x " if job.n_devices > 1 else ""
    return TrainingRecord(
        plan_digest=plan.digest(),
        splits_digest=job.splits.digest(),
        configuration=job.configuration,
        variant=plan.recipe,
        fold=job.fold,
        seed=job.seed,
        deterministic=job.deterministic,
        device=devices + runtime.describe(),
        begun_with=progress.begun_with,
        epochs=progress.epoch,
        iterations=progress.iteration,
        elapsed_s=round(progress.elapsed_s, 2),
        data_wait_share=progress.waited_s / max(progress.elapsed_s, 1e-9),
        train_loss=progress.train_loss,
        validation_dice=dict(zip(plan.labels.names, progress.validation_dice, strict=True)),
        mean_validation_dice=mean_dice(progress.validation_dice),
        stopped_early=progress.stopped_early,
        best_epoch=progress.best_epoch if plan.training.patience_epochs is not None else None,
        mirror_axes=plan.mirror_axes_of(plan.configuration(job.configuration)),
        weights_sha256="",
        versions={"segpipe": version("segpipe"), "torch": torch.__version__, "python": platform.python_version()},
    )
