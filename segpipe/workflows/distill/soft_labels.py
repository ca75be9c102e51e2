"""Soft labels of a workspace's cases, and of images that nobody labelled: which are wanted, from which files, told to the watch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from segpipe.errors import DistillationError
from segpipe.workflows.project import splits_of

if TYPE_CHECKING:
    from segpipe.core.progress import Watch
    from segpipe.core.workspace import Workspace
    from segpipe.distillation.soft_labels import Source
    from segpipe.distillation.teacher import Teacher
    from segpipe.execution.device import Runtime
    from segpipe.planning.schema import Plan
    from segpipe.preprocessing.schema import PreprocessedIndex


@dataclass(frozen=True)
class StudentContext:
    """What a student is to be taught on."""

    workspace: Workspace
    plan: Plan
    configuration: str
    index: PreprocessedIndex
    """Prepared cases."""
    fold: int | str
    """Held out."""
    unlabelled: Path | None = None
    """Images that nobody labelled: a folder, or a manifest."""


@dataclass(frozen=True)
class SoftLabels:
    """Soft labels on disk."""

    folder: Path
    index: PreprocessedIndex
    """Of the cases that have some."""
    unlabelled: tuple[Path, tuple[str, ...]] | None
    """Folder of prepared images without labels, and which."""
    unusable: dict[str, str]
    """Images without labels that could not be used, with the reasons."""


def why_on_disk(student: StudentContext, teachers: tuple[Teacher, ...]) -> str | None:
    """Why the teachers' probabilities have to be kept on disk; None where the teachers could look at the student's patches."""
    from segpipe.distillation.teacher import why_not_beside

    configuration = student.plan.configuration(student.configuration)
    for teacher in teachers:
        reason = why_not_beside(teacher, student.plan, configuration)
        if reason is not None:
            return f"{teacher.path}: {reason}"
    return None if student.unlabelled is None else "--unlabelled: patches are centred on what the teachers see"


def label_softly(
    student: StudentContext,
    teachers: tuple[Teacher, ...],
    runtime: Runtime,
    *,
    tta: bool,
    jobs: int | None,
    watch: Watch,
) -> SoftLabels:
    """Write what the teachers say of every training case; a case that fails is told, and not trained on.

    Parameters
    ----------
    student : StudentContext
    teachers : tuple of Teacher
    runtime : Runtime
    tta : bool
        Average over mirrored images.
    jobs : int, optional
        Most worker processes.
    watch : Watch

    Raises
    ------
    DistillationError
        If the teachers do not know the labels, or could label no case.
    """
    from segpipe.core.workspace import SoftLabelFiles
    from segpipe.distillation.soft_labels import soft_label_key, write_soft_labels
    from segpipe.distillation.unlabelled import take_over_calls
    from segpipe.execution.torch_state import training_state
    from segpipe.inference.engines.choose import inference_runtime

    plan, configuration = student.plan, student.plan.configuration(student.configuration)
    folder = student.workspace.soft_labels(
        student.configuration, soft_label_key(teachers, plan, configuration, tta=tta)
    )
    sources = _labelled_sources(student)
    more, unusable = ([], {}) if student.unlabelled is None else _unlabelled(student, student.unlabelled, jobs, watch)
    with (
        training_state(runtime.device, deterministic=runtime.deterministic),
        watch.counting("soft labels", len(sources) + len(more)) as done,
    ):
        failed = write_soft_labels(
            [*sources, *more], teachers, plan, configuration, inference_runtime(runtime), folder, tta=tta, on_case=done
        )
    for case, reason in failed.items():
        watch.note(f"soft labels: {case}: {reason}")
    if all(source.id in failed for source in sources):
        raise DistillationError(f"{folder}: the teachers could label no training case; the reasons are above")
    kept = tuple(case for case in student.index.cases if case not in failed)
    lost = {s.id: f"soft labels: {failed[s.id]}" for s in sources if s.id in failed}
    index = student.index.model_copy(update={"cases": kept, "failed": {**student.index.failed, **lost}})
    unusable |= {s.id: f"soft labels: {failed[s.id]}" for s in more if s.id in failed}
    usable = [source for source in more if source.id not in failed]
    for source in usable:
        take_over_calls(source, SoftLabelFiles(folder / source.id), plan, configuration)
    place = (usable[0].prepared.root.parent, tuple(s.id for s in usable)) if usable else None
    return SoftLabels(folder, index, place, unusable)


def _labelled_sources(student: StudentContext) -> list[Source]:
    """The prepared training cases."""
    from segpipe.core.workspace import PreparedFiles
    from segpipe.dataset.fingerprint.schema import Fingerprint
    from segpipe.dataset.schema import Dataset
    from segpipe.distillation.soft_labels import Source

    workspace = student.workspace
    splits = splits_of(workspace, Fingerprint.read(workspace.fingerprint))
    train = set(splits.fold(student.fold).train) & set(student.index.cases)
    prepared = workspace.preprocessed(student.configuration)
    return [
        Source(c.id, tuple(i.path for i in c.images), PreparedFiles(prepared / c.id))
        for c in Dataset.read(workspace.dataset).cases
        if c.id in train
    ]


def _unlabelled(
    student: StudentContext, images: Path, jobs: int | None, watch: Watch
) -> tuple[list[Source], dict[str, str]]:
    """Images without labels, prepared, and those that failed; the others go on."""
    from segpipe.core.artefact import json_digest
    from segpipe.dataset.fingerprint.schema import Fingerprint
    from segpipe.dataset.schema import Dataset
    from segpipe.distillation.unlabelled import prepare_unlabelled
    from segpipe.inference.inputs import find_inputs
    from segpipe.preprocessing.run import peak_bytes

    workspace, plan = student.workspace, student.plan
    configuration = plan.configuration(student.configuration)
    known = {c.id for c in Dataset.read(workspace.dataset).cases}
    usable, failed = {}, {}
    for case in find_inputs(images, workspace.root / "unlabelled", len(plan.channel_names)):
        if case.problem or case.id in known:
            taken = "the dataset has a case of this name; leave it out, or give it another name"
            failed[case.id] = case.problem or taken
        else:
            usable[case.id] = case.images
    key = json_digest([str(images.resolve()), configuration.patch_size])[:16]
    with watch.counting("preparing images without labels", len(usable)) as done:
        sources, problems = prepare_unlabelled(
            usable,
            plan,
            configuration,
            workspace.unlabelled(student.configuration, key),
            jobs_limit=jobs,
            bytes_each=peak_bytes(Fingerprint.read(workspace.fingerprint), plan, configuration),
            on_case=done,
        )
    unusable = {name: f"unlabelled: {reason}" for name, reason in (failed | problems).items()}
    for name, reason in unusable.items():
        watch.note(f"{name}: {reason}")
    return sources, unusable
