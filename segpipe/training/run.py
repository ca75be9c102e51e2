"""The stage: prepared arrays in, weights and their record out."""

from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

from safetensors.torch import load

from segpipe.core.regular import lies, regular
from segpipe.core.workspace import FoldFolder, Workspace
from segpipe.errors import TrainingError
from segpipe.execution.device import Runtime
from segpipe.execution.locks import locked
from segpipe.models.file import ModelFile, Weights
from segpipe.planning.schema import Configuration, Plan
from segpipe.training.fold import train_here
from segpipe.training.job import FoldJob, Listener
from segpipe.training.schema import TrainingRecord


def train(job: FoldJob, runtime: Runtime, listener: Listener | None = None) -> TrainingRecord:
    """Train one fold of one configuration on one device or several.

    Parameters
    ----------
    job : FoldJob
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
    with locked(job.folder.root, wait=False):
        require_trainable(job)
        _sweep(job.folder)
        record = _finished(job) if job.resume and lies(job.folder.record) else None
        if record is None or job.extend:
            if not job.resume:
                job.folder.log.unlink(missing_ok=True)
            # What it was trained by stays known when the workspace's plan is replaced.
            job.plan.write(job.folder.plan)
            if job.n_devices == 1:
                record = train_here(job, runtime, told)
            else:
                from segpipe.training.launch import train_on_devices

                record = train_on_devices(job, runtime, told)
    pack_model(job.workspace, job.plan, job.configuration, told.note)
    return record


def pack_model(
    workspace: Workspace, plan: Plan, configuration: str, note: Callable[[str], None] = lambda _: None
) -> Path:
    """Pack every finished fold of a variant into its portable model, with that of the stage before it in a cascade.

    Parameters
    ----------
    workspace : Workspace
    plan : Plan
        Folds that were trained by another one are not packed.
    configuration : str
    note : callable, optional
        Receives which folds are not packed.
    """
    root = workspace.variant(configuration, plan.recipe)
    # Two folds may end at the same time: each packs what the other left.
    with locked(root, wait=True):
        folders = [FoldFolder(p) for p in sorted(root.glob("fold_*")) if lies(FoldFolder(p).record)]
        records = [TrainingRecord.read(f.record) for f in folders]
        current = [(f, r) for f, r in zip(folders, records, strict=True) if r.plan_digest == plan.digest()]
        left = ", ".join(str(r.fold) for r in records if r.plan_digest != plan.digest())
        if left:
            note(
                f"fold {left} is not in {workspace.model(configuration, plan.recipe)} any more: another plan trained it "
                f"(plan.json beside its weights); delete {root / 'fold_N'} and train it again by today's plan"
            )
        before = plan.configuration(configuration).previous_stage
        model = ModelFile(
            plan_json=plan.to_json(),
            configuration=configuration,
            variant=plan.recipe,
            mirror_axes=current[0][1].mirror_axes,
            folds={str(r.fold): _weights(f, r) for f, r in current},
            previous=None if before is None else ModelFile.read(workspace.model(before, plan.recipe)),
        )
        path = workspace.model(configuration, plan.recipe)
        model.write(path)
    return path


def _weights(folder: FoldFolder, record: TrainingRecord) -> Weights:
    """Read a finished fold's weights, as its training wrote them.

    Raises
    ------
    TrainingError
        If the file is gone, damaged, or another fold's.
    """
    again = f"copy it back, or delete it and {folder.record.name} beside it, then `segpipe train --fold {record.fold} --resume`"
    try:
        content = regular(folder.weights).read_bytes()
    except FileNotFoundError as error:
        raise TrainingError(f"{folder.weights}: is gone; {again}") from error
    found = sha256(content).hexdigest()
    if found != record.weights_sha256:
        raise TrainingError(
            f"{folder.weights}: the file is damaged, or another one: its sha256 is {found[:12]}..., its record says "
            f"{record.weights_sha256[:12]}...; {again}"
        )
    weights: Weights = load(content)
    return weights


def require_trainable(job: FoldJob) -> None:
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
    require_state(job.folder, resume=job.resume, extend=job.extend)


def require_state(folder: FoldFolder, *, resume: bool, extend: bool) -> None:
    """Raise if a fold was trained before and is not to be resumed, or is to be extended and is not finished.

    Raises
    ------
    TrainingError
    """
    if not resume and folder.begun:
        raise TrainingError(
            f"{folder.root}: this fold was trained before; give --resume to continue it, another --work, "
            "or delete the folder to start afresh"
        )
    if extend and not (lies(folder.checkpoint) and lies(folder.record)):
        raise TrainingError(
            f"{folder.root}: --extend continues a finished fold, and this one "
            + ("is not finished; give --resume" if lies(folder.checkpoint) else "has no checkpoint.pt to continue from")
        )


def require_first_stage(job: FoldJob) -> None:
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
        if not lies(record) or TrainingRecord.read(record).plan_digest != job.plan.digest():
            missing.append(fold)
    if missing:
        asked = job.plan.asked_network
        network = "" if asked is None else f" --network '{asked.text}'"
        commands = " ".join(f"`segpipe train DATASET -c {first} --fold {fold}{network}`" for fold in missing)
        raise TrainingError(
            f"configuration {job.configuration!r} learns from what every fold of {first!r} finds in the cases it held out; "
            f"train first: {commands}"
        )


def _require_network(configuration: Configuration) -> None:
    if len(configuration.network.features) == 1:
        raise TrainingError(
            f"configuration {configuration.name!r}: the median image {configuration.median_shape} is too small to pool even once "
            "(8 voxels along an axis are needed); plan with a finer --spacing"
        )


def _sweep(folder: FoldFolder) -> None:
    """Take away what a killed process was writing; whoever holds the lock is the only one that writes."""
    for file in (folder.checkpoint, folder.weights, folder.record, folder.log):
        for left in folder.root.glob(f".{file.name}.*"):
            left.unlink()


def _finished(job: FoldJob) -> TrainingRecord:
    record = TrainingRecord.read(job.folder.record)
    if (record.plan_digest, record.splits_digest, record.seed) != (job.plan.digest(), job.splits.digest(), job.seed):
        raise TrainingError(
            f"{job.folder.root}: was trained with another plan, other splits or seed {record.seed} (now {job.seed}); use another --work, "
            "or delete the folder to train it afresh"
        )
    if (record.guidance or {}).get("digest") != (None if job.guidance is None else job.guidance.digest):
        raise TrainingError(
            f"{job.folder.root}: was taught in another way (its record.json says how); give another --name, or delete the folder to "
            "train it afresh"
        )
    return record
