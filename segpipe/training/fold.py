"""One fold in one process: data, network and loop put together, weights and record written."""

import logging
import platform
from collections.abc import Callable
from typing import Any

import torch
from safetensors.torch import save

from segpipe.augment.spec import AugmentationSpec, default_spec
from segpipe.core import seeds
from segpipe.core.regular import lies
from segpipe.core.whole import write_atomically
from segpipe.dataset.splits import Fold
from segpipe.errors import TrainingError
from segpipe.execution.device import Runtime
from segpipe.execution.torch_state import training_state
from segpipe.models.file import file_sha256
from segpipe.networks.build import build_network
from segpipe.networks.segmenter import Segmenter
from segpipe.training.data import BatchSource, sampling
from segpipe.training.initial import remark_on_channels, take_over
from segpipe.training.job import FoldJob, Listener
from segpipe.training.loop import Trainer
from segpipe.training.progress import Progress, mean_dice
from segpipe.training.ranks import ALONE, Ranks
from segpipe.training.schedule import make_schedule
from segpipe.training.schema import Extension, TrainingRecord
from segpipe.training.storage import TrainingCase, choose_place, open_cases, placed
from segpipe.version import __version__

logger = logging.getLogger(__name__)

# Readers beyond these only fight for the processor with each other.
_MOST_READERS = 4


def train_here(
    job: FoldJob,
    runtime: Runtime,
    listener: Listener,
    ranks: Ranks = ALONE,
    fabric: Any = None,
) -> TrainingRecord:
    """Train in this process, alone or as one of several; the first of them writes weights and record.

    What the training sets in torch is as it was when this returns or raises.
    """
    with training_state(runtime.device, deterministic=job.deterministic):
        return _trained(job, runtime, listener, ranks, fabric)


def _trained(job: FoldJob, runtime: Runtime, listener: Listener, ranks: Ranks, fabric: Any) -> TrainingRecord:
    trainer = make_trainer(job, runtime, listener, ranks, fabric)
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


def make_trainer(
    job: FoldJob, runtime: Runtime, listener: Listener, ranks: Ranks = ALONE, fabric: Any = None
) -> Trainer:
    """Return the trainer of a job, with its data where they are read fastest.

    It draws first weights from torch's random numbers, which are seeded for that and go on from there in the training:
    :func:`train_here` puts back those of the calling program.
    """
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
    cases, n_readers = _cases_in_place(job, usable, runtime, listener, ranks)
    weights = tuple(settings.foreground_weights.get(name, 1.0) for name in plan.labels.names)
    how = sampling(
        configuration.patch_size, batch, settings.foreground_share, weights, by_label=settings.foreground_by == "label"
    )

    def source(name: str, ids: tuple[str, ...], augmentation: AugmentationSpec | None) -> BatchSource:
        return BatchSource(
            [cases[case] for case in ids],
            how,
            augmentation,
            seed=job.seed,
            name=name,
            flat=configuration.dims == 2,
            n_previous=n_previous,
            share=ranks.share(batch),
        )

    network, begun_with = _network(job, n_previous, listener if ranks.first else Listener())
    return Trainer(
        network=network,
        training=source("training", drawn_from(usable.train, unlabelled_of(job)), spec if chosen.enabled else None),
        validation=source("validation", usable.validation, None),
        labels=plan.labels,
        batch_dice=configuration.batch_dice,
        settings=settings,
        schedule=make_schedule(settings, len(usable.train), batch, epochs=job.epochs, minutes=job.minutes),
        runtime=runtime,
        folder=job.folder,
        identity=job.identity,
        spacing=configuration.spacing_mm,
        n_readers=n_readers,
        end_is_asked_for=job.epochs is not None or job.minutes is not None,
        extend=job.extend,
        begun_with=begun_with,
        # What is faster today may not be tomorrow: not where the same bytes are wanted twice.
        compile_if_faster=not job.deterministic,
        guidance=job.guidance,
        on_iteration=listener.on_iteration,
        on_epoch=_harmless(listener.on_epoch),
        note=listener.note if ranks.first else lambda _: None,
        ranks=ranks,
        fabric=fabric,
    )


def drawn_from(labelled: tuple[str, ...], unlabelled: tuple[str, ...]) -> tuple[str, ...]:
    """Cases that patches are drawn from, each alike: those with labels as often as is needed to be about half of them or more."""
    return labelled * max(round(len(unlabelled) / len(labelled)), 1) + unlabelled


def unlabelled_of(job: FoldJob) -> tuple[str, ...]:
    """Cases without labels that are trained on beside the others."""
    found = None if job.guidance is None else job.guidance.unlabelled
    return () if found is None else found[1]


def _cases_in_place(
    job: FoldJob, usable: Fold, runtime: Runtime, listener: Listener, ranks: Ranks
) -> tuple[dict[str, TrainingCase], int]:
    """Cases by id, with their arrays where they are read fastest, and how many threads are to read them."""
    plan, configuration = job.plan, job.plan.configuration(job.configuration)
    augmentation = plan.training.augmentation
    spoilt = augmentation.enabled and bool(augmentation.artefacts)
    arrays = job.workspace.preprocessed(plan.arrays_of(configuration.name))
    previous = job.workspace.first_stage(configuration.name, plan.recipe) if configuration.previous_stage else None
    soft = None if job.guidance is None else job.guidance.soft_labels
    cases = open_cases(arrays, usable.train, previous, soft=soft, labels=plan.labels)
    only_held_out = tuple(c for c in usable.validation if c not in set(usable.train))
    cases += open_cases(arrays, only_held_out, previous)
    if job.guidance is not None and job.guidance.unlabelled is not None:
        folder, ids = job.guidance.unlabelled
        cases += open_cases(folder, ids, soft=soft, labels=plan.labels, labelled=False)
    place = choose_place(
        cases,
        # TorchIO's artefacts work on the CPU: nothing is won by data on a GPU.
        torch.device("cpu") if spoilt else runtime.device,
        reserved_bytes=1.5e9 * configuration.estimated_memory_gb,
        sharers=ranks.world,
    )
    n_readers = min(_MOST_READERS, torch.get_num_threads()) if place == "disk" or spoilt else 1
    if ranks.first:
        where = {"device": "on the device", "memory": "in memory", "disk": f"on disk, read by {n_readers} thread(s)"}
        listener.note(
            f"{len(usable.train) + len(unlabelled_of(job))} training and {len(usable.validation)} held-out cases {where[place]}"
        )
    return {c.id: c for c in placed(cases, place, runtime.device)}, n_readers


def _network(job: FoldJob, n_previous: int, listener: Listener) -> tuple[Segmenter, str | None]:
    """The planned network with fresh weights, or with what fits of another model's, and whose these are."""
    plan = job.plan
    torch.manual_seed(int(seeds.stream(job.seed, "weights").integers(2**62)))
    spec = plan.configuration(job.configuration).network
    network = build_network(spec, len(plan.channel_names) + n_previous, plan.labels.n_outputs)
    if job.initial is None or (job.resume and lies(job.folder.checkpoint)):
        return network, None
    begun_with = job.initial.describe()
    left = take_over(network, job.initial, plan.channel_names, spec.architecture)
    remark = remark_on_channels(job.initial, plan.channel_names)
    if remark is not None:
        listener.note(remark)
    listener.note(f"weights to begin with: {begun_with}; {len(left)} not taken")
    for reason in left:
        listener.note(f"  {reason}")
    return network, begun_with


def _harmless(tell: Callable[[], None]) -> Callable[[], None]:
    """Whoever draws or shows must not end the training that it looks at."""

    def told() -> None:
        try:
            tell()
        except Exception:
            logger.exception("after an epoch")

    return told


def _record(job: FoldJob, runtime: Runtime, progress: Progress) -> TrainingRecord:
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
        guidance=None if job.guidance is None else job.guidance.describe(),
        epochs=progress.epoch,
        iterations=progress.iteration,
        elapsed_s=round(progress.elapsed_s, 2),
        scheduled_epochs=progress.epochs if progress.minutes is None else None,
        scheduled_minutes=progress.minutes,
        extensions=tuple(Extension(epochs=e, iterations=i, elapsed_s=round(s, 2)) for e, i, s in progress.extensions),
        data_wait_share=progress.waited_s / max(progress.elapsed_s, 1e-9),
        train_loss=progress.train_loss,
        validation_dice=dict(
            zip(plan.labels.names, progress.validation_dice or [None] * len(plan.labels.names), strict=True)
        ),
        mean_validation_dice=mean_dice(progress.validation_dice),
        stopped_early=progress.stopped_early,
        best_epoch=progress.best_epoch if plan.training.patience_epochs is not None else None,
        mirror_axes=plan.mirror_axes_of(plan.configuration(job.configuration)),
        weights_sha256="",
        versions={"segpipe": __version__, "torch": torch.__version__, "python": platform.python_version()},
    )
