"""Students of a workspace: taught, or trained alone, and scored on the held-out cases."""

from __future__ import annotations

import gc
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from segpipe.core.progress import Watch
from segpipe.core.regular import lies
from segpipe.distillation.guidance import Distillation
from segpipe.distillation.spec import WITHOUT_TEACHER, KdTerm
from segpipe.distillation.teacher import Teacher
from segpipe.errors import DistillationError
from segpipe.networks.build import build_network
from segpipe.planning.schema import Plan
from segpipe.preprocessing.schema import PreprocessedIndex
from segpipe.training.initial import InitialWeights
from segpipe.training.schedule import make_schedule
from segpipe.training.schema import TrainingRecord
from segpipe.training.settings import FoldSettings
from segpipe.workflows.distill.soft_labels import label_softly, why_on_disk
from segpipe.workflows.fold import FoldWork, doubt_of_folds, train_fold
from segpipe.workflows.held_out import HeldOut, score_held_out
from segpipe.workflows.options import DistillOptions
from segpipe.workflows.project import Project, write_asked


@dataclass(frozen=True)
class DistillationRun:
    """What all students of one command share."""

    project: Project
    configuration: str
    options: DistillOptions
    terms: tuple[KdTerm, ...]
    cap: float
    index: PreprocessedIndex | None = None
    """Prepared cases."""
    fresh: bool = False
    """Begin with fresh weights, whatever the options say."""

    def work(self, plan: Plan) -> FoldWork:
        """Return a student's fold, to be trained and scored."""
        return FoldWork(self.project, plan, self.configuration, FoldSettings.of(self.options), self.index)


@dataclass(frozen=True)
class Student:
    """A trained student."""

    record: TrainingRecord
    model: Path
    held_out: HeldOut | None
    """Scores of the held-out cases; None where none was held out."""
    index: PreprocessedIndex
    """Cases that it was trained on and held out."""
    initial: InitialWeights | None
    """Weights that it began with."""
    unusable: dict[str, str] = field(default_factory=dict)
    """Images without labels that could not be used, with the reasons."""

    @property
    def failed(self) -> dict[str, str]:
        """Cases that were lost on the way."""
        return self.unusable | ({} if self.held_out is None else self.held_out.failed)


def teach(run: DistillationRun, plan: Plan, teachers: tuple[Teacher, ...]) -> Student:
    """Let one student learn from its teachers, and score it.

    Raises
    ------
    DistillationError
        If the teachers cannot teach it.
    """
    watch, work = run.project.watch, run.work(plan)
    for teacher in teachers:
        watch.note(f"teacher: {teacher.describe()}")
        doubt = doubt_of_folds(teacher.path, teacher.folds, work.fold, run.project.workspace)
        if doubt:
            watch.note(f"  {doubt}")
    soft = label_softly(work, teachers, run.options) if _on_disk(run, work, teachers) else None
    guidance = Distillation(
        terms=run.terms,
        cap=run.cap,
        teachers=teachers,
        plan=plan,
        configuration=plan.configuration(run.configuration),
        seed=run.options.seed,
        soft_labels=None if soft is None else soft.folder,
        unlabelled=None if soft is None else soft.unlabelled,
    )
    work = work if soft is None else work.on(soft.index)
    fresh = run.fresh or run.options.fresh
    initial = None if fresh else _initial(plan, run.configuration, teachers, watch)
    watch.note(f"training on {run.project.runtime.describe()}")
    _write_asked(work, run)
    student = _scored(run, work, train_fold(work, guidance, initial), initial)
    return student if soft is None else replace(student, unusable=soft.unusable)


def train_alone(run: DistillationRun, plan: Plan, taught: Student) -> Student:
    """Train a student once more without its teachers: the same network, first weights, seed, cases and length.

    Where the length was given in minutes, of which a teacher takes some, it is the number of epochs that the taught one came to.
    """
    work = run.work(plan).on(taught.index)
    if work.settings.minutes is not None:
        epochs = _epochs_of(run.work(plan), taught.record)
        work = replace(work, settings=replace(work.settings, minutes=None, epochs=epochs))
    run.project.watch.note("the same student without a teacher")
    _write_asked(work, run)
    return _scored(run, work, train_fold(work, initial=taught.initial), taught.initial)


def _write_asked(work: FoldWork, run: DistillationRun) -> None:
    if not lies(work.folder.record):
        write_asked(work.folder.root, "distill", run.options)


def _epochs_of(work: FoldWork, record: TrainingRecord) -> int:
    """Return the epochs that a training's iterations come to, at least one."""
    n_cases = len(set(work.project.splits.fold(work.fold).train) & set(work.prepared.cases))
    batch = work.plan.configuration(work.configuration).batch_size
    schedule = make_schedule(work.plan.training, n_cases, batch, epochs=None, minutes=None)
    return max(round(record.iterations / schedule.iterations_per_epoch), 1)


def _scored(run: DistillationRun, work: FoldWork, record: TrainingRecord, initial: InitialWeights | None) -> Student:
    """Return a trained student with its scores on the held-out cases."""
    # What training held (cases on a GPU, teachers, a second student) refers to itself; the next one needs the memory.
    gc.collect()
    if run.project.runtime.device.type == "cuda":
        torch.cuda.empty_cache()
    held_out = None if work.fold == "all" else score_held_out(work, run.options)
    return Student(record, work.model, held_out, work.prepared, initial)


def _on_disk(run: DistillationRun, work: FoldWork, teachers: tuple[Teacher, ...]) -> bool:
    """Whether the teachers' probabilities are kept on disk.

    Raises
    ------
    DistillationError
        If they have to be, and it was asked that they are not, or a term needs the teachers' feature maps.
    """
    needing = [term for term in run.terms if term.weight and not isinstance(term, WITHOUT_TEACHER)]
    if not needing:
        return False
    looking = [term.name for term in needing if term.modules]
    because = why_on_disk(work, teachers, run.options.unlabelled)
    if because is None and run.options.teacher_tta:
        because = "--teacher-tta: mirror images of every patch would cost eight times the teacher"
    wanted = run.options.soft_labels
    if because is None:
        # On a CPU a look at every patch would cost more than the student's own step.
        wanted = run.project.runtime.device.type == "cpu" and not looking if wanted is None else wanted
        because = "--soft-labels" if wanted else None
    elif wanted is False:
        raise DistillationError(f"--no-soft-labels: the teachers cannot look at the student's patches: {because}")
    else:
        run.project.watch.note(f"the teachers' probabilities are kept on disk: {because}")
    if because is not None and looking:
        raise DistillationError(
            f"the term {looking[0]} looks at feature maps, and those of the teacher are not to be had: its probabilities are kept on "
            f"disk ({because}); give terms on logits, or a teacher of the same plan"
        )
    return because is not None


def _initial(plan: Plan, configuration: str, teachers: tuple[Teacher, ...], watch: Watch) -> InitialWeights | None:
    """The first teacher's weights, where any of its convolutions has the shape of the student's."""
    if not teachers:
        return None
    first, chosen = teachers[0], plan.configuration(configuration)
    with torch.random.fork_rng(devices=[]):
        own = build_network(chosen.network, plan.n_inputs(chosen), plan.labels.n_outputs).state_dict()
    given = first.model.folds[first.folds[0]]
    if not any(value.ndim > 1 and n in own and own[n].shape == value.shape for n, value in given.items()):
        watch.note("the student begins with fresh weights: none of the teacher's convolutions has its shape")
        return None
    return InitialWeights(first.path, first.folds[0], given, first.plan.channel_names)
