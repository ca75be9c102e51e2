"""Soft labels of a workspace's cases, and of images that nobody labelled."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from segpipe.core.artefact import json_digest
from segpipe.core.system_names import real_path
from segpipe.core.workspace import PreparedFiles, SoftLabelFiles
from segpipe.distillation.soft_labels import Source, soft_label_key, write_soft_labels
from segpipe.distillation.teacher import Teacher, why_not_beside
from segpipe.distillation.unlabelled import prepare_unlabelled, take_over_calls
from segpipe.errors import DistillationError
from segpipe.execution.torch_state import training_state
from segpipe.inference.engines.choose import inference_runtime
from segpipe.inference.inputs import find_inputs
from segpipe.preprocessing.run import peak_bytes
from segpipe.preprocessing.schema import PreprocessedIndex
from segpipe.workflows.fold import FoldWork
from segpipe.workflows.options import DistillOptions


@dataclass(frozen=True)
class SoftLabels:
    """Soft labels on disk."""

    folder: Path
    index: PreprocessedIndex
    """Cases that have some."""
    unlabelled: tuple[Path, tuple[str, ...]] | None
    """Folder of prepared images without labels, and which."""
    unusable: dict[str, str]
    """Images without labels that could not be used, with the reasons."""


def why_on_disk(work: FoldWork, teachers: tuple[Teacher, ...], unlabelled: Path | None) -> str | None:
    """Why the teachers' probabilities have to be kept on disk; None where the teachers could look at the student's patches."""
    configuration = work.plan.configuration(work.configuration)
    for teacher in teachers:
        reason = why_not_beside(teacher, work.plan, configuration)
        if reason is not None:
            return f"{teacher.path}: {reason}"
    return None if unlabelled is None else "--unlabelled: patches are centred on what the teachers see"


def label_softly(work: FoldWork, teachers: tuple[Teacher, ...], options: DistillOptions) -> SoftLabels:
    """Write what the teachers say of every training case; a case that fails is reported, and not trained on.

    Raises
    ------
    DistillationError
        If the teachers do not know the labels, or could label no case.
    """
    project, watch = work.project, work.project.watch
    plan, configuration = work.plan, work.plan.configuration(work.configuration)
    folder = project.workspace.soft_labels(
        work.configuration, soft_label_key(teachers, plan, configuration, tta=options.teacher_tta)
    )
    sources = _labelled_sources(work)
    more, unusable = ([], {}) if options.unlabelled is None else _unlabelled(work, options.unlabelled)
    with (
        training_state(project.runtime.device, deterministic=project.runtime.deterministic),
        watch.counting("soft labels", len(sources) + len(more)) as done,
    ):
        failed = write_soft_labels(
            [*sources, *more], teachers, plan, configuration, inference_runtime(project.runtime), folder,
            tta=options.teacher_tta, on_case=done,
        )  # fmt: skip
    for case, reason in failed.items():
        watch.note(f"soft labels: {case}: {reason}")
    if all(source.id in failed for source in sources):
        raise DistillationError(f"{folder}: the teachers could label no training case; the reasons are above")
    kept = tuple(case for case in work.prepared.cases if case not in failed)
    lost = {s.id: f"soft labels: {failed[s.id]}" for s in sources if s.id in failed}
    index = work.prepared.model_copy(update={"cases": kept, "failed": {**work.prepared.failed, **lost}})
    unusable |= {s.id: f"soft labels: {failed[s.id]}" for s in more if s.id in failed}
    usable = [source for source in more if source.id not in failed]
    for source in usable:
        take_over_calls(source, SoftLabelFiles(folder / source.id), plan, configuration)
    place = (usable[0].prepared.root.parent, tuple(s.id for s in usable)) if usable else None
    return SoftLabels(folder, index, place, unusable)


def _labelled_sources(work: FoldWork) -> list[Source]:
    """The prepared training cases."""
    workspace = work.project.workspace
    train = set(work.project.splits.fold(work.fold).train) & set(work.prepared.cases)
    prepared = workspace.preprocessed(work.configuration)
    return [
        Source(c.id, tuple(i.path for i in c.images), PreparedFiles(prepared / c.id))
        for c in work.project.matched.cases
        if c.id in train
    ]


def _unlabelled(work: FoldWork, images: Path) -> tuple[list[Source], dict[str, str]]:
    """Images without labels, prepared, and those that failed; the others go on."""
    workspace, plan = work.project.workspace, work.plan
    configuration = plan.configuration(work.configuration)
    known = {c.id for c in work.project.matched.cases}
    usable, failed = {}, {}
    for case in find_inputs(
        images, workspace.root / "unlabelled", len(plan.channel_names), digits=plan.digits, note=work.project.watch.note
    ):
        if case.problem or case.id in known:
            taken = "the dataset has a case of this name; leave it out, or give it another name"
            failed[case.id] = case.problem or taken
        else:
            usable[case.id] = case.images
    key = json_digest([str(real_path(images)), configuration.patch_size])[:16]
    with work.project.watch.counting("preparing images without labels", len(usable)) as done:
        sources, problems = prepare_unlabelled(
            usable,
            plan,
            configuration,
            workspace.unlabelled(work.configuration, key),
            workers=work.project.workers,
            bytes_each=peak_bytes(work.project.measured, plan, configuration),
            on_case=done,
        )
    unusable = {name: f"unlabelled: {reason}" for name, reason in (failed | problems).items()}
    for name, reason in unusable.items():
        work.project.watch.note(f"{name}: {reason}")
    return sources, unusable
