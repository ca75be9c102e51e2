"""Soft labels: what teachers say of whole cases, kept on disk on the grid of the student's prepared arrays.

A teacher may have another plan: it is run as in prediction, on its own spacing and in its own orientation, and its probabilities are
interpolated linearly over the same box of the image. Of each voxel the largest few are kept; compressed, most voxels cost next to
nothing.
"""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segpipe.core.artefact import ArraysRecord, json_digest
from segpipe.core.geometry import Grid, Orientation, Shape, canonical_orientation
from segpipe.core.labels import Labels
from segpipe.core.regular import lies
from segpipe.core.workspace import PreparedFiles, SoftLabelFiles
from segpipe.dataset.load import load_image
from segpipe.distillation.teacher import Teacher, digest_of, mapped, output_map
from segpipe.errors import ArtefactError, DistillationError
from segpipe.execution.device import Runtime
from segpipe.execution.processes import reason_of
from segpipe.inference.engines.choose import network_cache
from segpipe.inference.predictor import PredictorOptions, make_stage
from segpipe.inference.restore import interpolated_planes
from segpipe.inference.stage import CaseTrace, LoadedModel
from segpipe.io.arrays import require_sha256, write_array
from segpipe.planning.schema import Configuration, Plan
from segpipe.preprocessing.schema import PreparedRecord

logger = logging.getLogger(__name__)

MOST_KEPT = 4
"""Labels of each voxel whose probabilities are kept; what the others share goes to these in proportion. Of regions, which may all be
likely, every one is kept."""
_LARGEST_BYTE = 256


class SoftLabelRecord(ArraysRecord):
    """Soft labels of a case."""

    case: str
    source_digest: str
    """Digest of the prepared arrays that they lie on."""


@dataclass(frozen=True)
class Source:
    """A case that is to be labelled: its image files, and its prepared arrays."""

    id: str
    images: tuple[Path, ...]
    prepared: PreparedFiles


@dataclass(frozen=True)
class Member:
    """One fold of one teacher, ready to compute."""

    stage: LoadedModel
    mapping: Tensor | None


def soft_label_key(teachers: tuple[Teacher, ...], plan: Plan, configuration: Configuration, *, tta: bool) -> str:
    """Name of a folder of soft labels: of the teachers' weights and plans, and of all that shapes the arrays that they lie on."""
    shaped = {"spacing_mm", "normalisation", "use_mask_for_norm"}
    about = {
        "teachers": digest_of(teachers),
        "tta": tta,
        "kept": n_kept(plan.labels),
        "labels": plan.labels.model_dump(mode="json"),
        "transpose": plan.transpose_forward,
        "orientation": plan.orientation,
        "configuration": configuration.model_dump(mode="json", include=shaped),
    }
    return json_digest(about)[:16]


def write_soft_labels(
    sources: list[Source],
    teachers: tuple[Teacher, ...],
    plan: Plan,
    configuration: Configuration,
    runtime: Runtime,
    folder: Path,
    *,
    tta: bool,
    on_case: Callable[[str], None] = lambda _: None,
) -> dict[str, str]:
    """Write the soft labels of every case that has none yet; returns the cases that failed, with their reasons.

    Parameters
    ----------
    sources : list of Source
    teachers : tuple of Teacher
    plan, configuration
        Plan and configuration of the student.
    runtime : Runtime
        Device and precision of prediction.
    folder : Path
    tta : bool
        Average each teacher over mirrored images.
    on_case : callable
        Called with each case when it is done.

    Raises
    ------
    DistillationError
        If a teacher does not know the student's labels.
    """
    waiting = [s for s in sources if not _is_done(s, folder)]
    members: list[Member] = []
    if waiting:
        options = PredictorOptions(tta=tta, postprocess=False, cache=network_cache())
        for teacher in teachers:
            mapping = output_map(teacher.plan.labels, plan.labels, teacher.path)
            for fold in teacher.folds:
                members.append(Member(make_stage(teacher.model, teacher.path, runtime, options, (fold,)), mapping))
    failed = {}
    for source in sources:
        if source in waiting:
            try:
                _write(source, members, plan, configuration, SoftLabelFiles(folder / source.id))
            except Exception as error:  # noqa: BLE001 - the reason is the case's result
                failed[source.id] = reason_of(error, f"case {source.id}")
        on_case(source.id)
    return failed


def _is_done(source: Source, folder: Path) -> bool:
    files = SoftLabelFiles(folder / source.id)
    if not all(lies(f) for f in (files.record, files.outputs, files.shares)):
        return False
    try:
        known = SoftLabelRecord.read(files.record)
        if known.source_digest != PreparedRecord.read(source.prepared.record).source_digest:
            return False
        for file in (files.outputs, files.shares):
            require_sha256(file, known.sha256_of(file))
    except ArtefactError as error:
        logger.warning("the soft labels of case %s are made again: %s", source.id, error)
        return False
    return True


@torch.inference_mode()
def _write(
    source: Source, members: list[Member], plan: Plan, configuration: Configuration, files: SoftLabelFiles
) -> None:
    record = PreparedRecord.read(source.prepared.record)
    files.record.unlink(missing_ok=True)
    files.root.mkdir(parents=True, exist_ok=True)
    ways = [_planes_of(source, member, plan, record.shape) for member in members]
    turn = ways[0][0]
    if any(other != turn for other, _ in ways):
        raise DistillationError(
            "the teachers keep the axes of an image in different orders; give such teachers one at a time, each teaching the student "
            "that the one before has taught"
        )
    kept = n_kept(plan.labels)
    small = np.uint8 if plan.labels.n_outputs <= _LARGEST_BYTE else np.int16
    outputs, shares = [], []
    for planes in zip(*(planes for _, planes in ways), strict=True):
        mean = torch.stack([p.cpu() for p in planes]).mean(0)
        largest = mean.topk(kept, dim=0)
        outputs.append(largest.indices.numpy().astype(small))
        shares.append(largest.values.numpy().astype(np.float16))
    patch = (1,) * (3 - configuration.dims) + configuration.patch_size
    written = {
        file.name: write_array(file, turn.apply(np.stack(arrays, axis=1)), patch)
        for file, arrays in ((files.outputs, outputs), (files.shares, shares))
    }
    SoftLabelRecord(case=source.id, source_digest=record.source_digest, arrays=written).write(files.record)


def _planes_of(source: Source, member: Member, plan: Plan, shape: Shape) -> tuple[Orientation, Iterator[Tensor]]:
    """What turns a teacher's array into the student's, and the teacher's probabilities (K, Y, X), plane by plane of its own order.

    Both have cut the image to the box of its non-zero voxels, so that their arrays cover the same part of it.
    """
    stage = member.stage
    image = load_image(
        source.id,
        _in_order(source, stage.plan.channel_names, plan.channel_names),
        stage.plan.channel_names,
        stage.plan.orientation,
        resample_channels=plan.resample_channels,
    )
    measured = CaseTrace()
    prepared, voxels = stage.ready(image.volume, None, measured)
    turn = _turn(stage.plan, image.stored_grid).inverse().then(_turn(plan, image.stored_grid))
    onto = [0, 0, 0]
    for axis, theirs in enumerate(turn.axes):
        onto[theirs] = shape[axis]
    regions = stage.plan.labels.regions

    def probabilities() -> Iterator[Tensor]:
        for logits in stage.logits(voxels, measured):
            said = logits.sigmoid() if regions else logits.softmax(0)
            yield mapped(said[None], None if member.mapping is None else member.mapping.to(said.device))[0]

    del prepared
    return turn, interpolated_planes(probabilities(), tuple(voxels.shape[1:]), tuple(onto))


def _in_order(source: Source, theirs: tuple[str, ...], ours: tuple[str, ...]) -> list[Path]:
    """Files of a case's channels as a teacher has them, by their names; one channel is what it is, whatever it is called."""
    if theirs == ours or len(ours) == 1:
        return list(source.images)
    if sorted(theirs) != sorted(ours) or len(source.images) != len(ours):
        raise DistillationError(
            f"the teacher's images have the channels {', '.join(theirs)}, the dataset's {', '.join(ours)}; expected the same names, a file "
            "each: name them alike in dataset.json"
        )
    return [source.images[ours.index(name)] for name in theirs]


def _turn(plan: Plan, grid: Grid) -> Orientation:
    """What turns an image as it is stored into a plan's axes."""
    oriented = canonical_orientation(grid) if plan.orientation == "canonical" else Orientation()
    return oriented.then(Orientation(plan.transpose_forward))


def n_kept(labels: Labels) -> int:
    """Probabilities of each voxel that are kept."""
    return labels.n_outputs if labels.regions else min(MOST_KEPT, labels.n_outputs)


def called_labels(outputs: NDArray[Any], shares: NDArray[Any], labels: Labels) -> NDArray[np.int16]:
    """Label indices (Z, Y, X) that probabilities (k, Z, Y, X) of some outputs call.

    For regions it is an index of the last one that is more likely than not, if it can be one that no later region covers.
    """
    if labels.regions:
        called = np.zeros(outputs.shape[1:], dtype=np.int16)
        for number, members in enumerate(labels.members):
            later = {i for others in labels.members[number + 1 :] for i in others}
            own = next((i for i in members if i not in later), members[0])
            called[((outputs == number) & (shares > 0.5)).any(axis=0)] = own
        return called
    indices = np.array([0, *(members[0] for members in labels.members)], dtype=np.int16)
    first: NDArray[np.int16] = indices[outputs[0]]
    return first
