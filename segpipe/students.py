"""Students of a workspace: taught, or trained alone, and scored on the held-out cases."""

from __future__ import annotations

import gc
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from segpipe.errors import DistillationError
from segpipe.held_out import HeldOut, score_held_out
from segpipe.soft_labelling import Pupil, label_softly, why_on_disk
from segpipe.steps import FoldSettings, doubt_of_folds, train_fold

if TYPE_CHECKING:
    from segpipe.distillation.spec import KdTerm
    from segpipe.distillation.teacher import Teacher
    from segpipe.planning.schema import Plan
    from segpipe.preprocessing.schema import PreprocessedIndex
    from segpipe.runtime import Runtime
    from segpipe.training.initial import InitialWeights
    from segpipe.training.schema import TrainingRecord
    from segpipe.watch import Watch
    from segpipe.workspace import Workspace


@dataclass(frozen=True)
class Lessons:
    """What all students of one command share."""

    workspace: Workspace
    configuration: str
    index: PreprocessedIndex
    """Prepared cases."""
    runtime: Runtime
    settings: FoldSettings
    terms: tuple[KdTerm, ...]
    cap: float
    teacher_tta: bool
    soft_labels: bool | None
    unlabelled: Path | None
    fresh: bool
    tta: bool
    tolerance_mm: float
    jobs: int | None
    watch: Watch


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


def teach(lessons: Lessons, plan: Plan, teachers: tuple[Teacher, ...]) -> Student:
    """Let one student learn from its teachers, and score it.

    Raises
    ------
    DistillationError
        If the teachers cannot teach it.
    """
    from segpipe.distillation.guidance import Distillation

    watch, fold = lessons.watch, lessons.settings.fold
    for teacher in teachers:
        watch.note(f"teacher: {teacher.describe()}")
        doubt = doubt_of_folds(teacher.path, teacher.folds, fold, lessons.workspace)
        if doubt:
            watch.note(f"  {doubt}")
    soft = None
    if _on_disk(lessons, plan, teachers):
        soft = label_softly(
            _pupil(lessons, plan),
            teachers,
            lessons.runtime,
            tta=lessons.teacher_tta,
            jobs=lessons.jobs,
            watch=watch,
        )
    guidance = Distillation(
        terms=lessons.terms,
        cap=lessons.cap,
        teachers=teachers,
        plan=plan,
        configuration=plan.configuration(lessons.configuration),
        seed=lessons.settings.seed,
        soft_labels=None if soft is None else soft.folder,
        unlabelled=None if soft is None else soft.unlabelled,
    )
    index = lessons.index if soft is None else soft.index
    initial = None if lessons.fresh else _initial(plan, lessons.configuration, teachers, watch)
    watch.note(f"training on {lessons.runtime.describe()}")
    record = train_fold(
        lessons.workspace,
        plan,
        index,
        lessons.runtime,
        lessons.settings,
        configuration=lessons.configuration,
        watch=watch,
        guidance=guidance,
        initial=initial,
    )
    student = _scored(lessons, plan, record, index, initial)
    return student if soft is None else replace(student, unusable=soft.unusable)


def train_alone(lessons: Lessons, plan: Plan, taught: Student) -> Student:
    """Train a student once more without its teachers: the same network, first weights, seed, cases and length.

    Where the length was given in minutes, of which a teacher takes some, it is the number of epochs that the taught one came to.
    """
    settings = lessons.settings
    if settings.minutes is not None:
        settings = replace(settings, minutes=None, epochs=_epochs_of(lessons, plan, taught.record))
    lessons.watch.note("the same student without a teacher")
    record = train_fold(
        lessons.workspace,
        plan,
        taught.index,
        lessons.runtime,
        settings,
        configuration=lessons.configuration,
        watch=lessons.watch,
        initial=taught.initial,
    )
    return _scored(lessons, plan, record, taught.index, taught.initial)


def _epochs_of(lessons: Lessons, plan: Plan, record: TrainingRecord) -> int:
    """Epochs that a training's iterations come to, at least one."""
    from segpipe.fingerprint.schema import Fingerprint
    from segpipe.steps import splits_of
    from segpipe.training.schedule import make_schedule

    splits = splits_of(lessons.workspace, Fingerprint.read(lessons.workspace.fingerprint))
    n_cases = len(set(splits.fold(lessons.settings.fold).train) & set(lessons.index.cases))
    batch = plan.configuration(lessons.configuration).batch_size
    schedule = make_schedule(plan.training, n_cases, batch, epochs=None, minutes=None)
    return max(round(record.iterations / schedule.iterations_per_epoch), 1)


def _scored(
    lessons: Lessons, plan: Plan, record: TrainingRecord, index: PreprocessedIndex, initial: InitialWeights | None
) -> Student:
    """A trained student with its scores on the held-out cases."""
    import torch

    # What training held (cases on a GPU, teachers, a second student) refers to itself; the next one needs the memory.
    gc.collect()
    if lessons.runtime.device.type == "cuda":
        torch.cuda.empty_cache()
    model, held_out = lessons.workspace.model(lessons.configuration, plan.recipe), None
    if lessons.settings.fold != "all":
        held_out = score_held_out(
            lessons.workspace,
            plan,
            index,
            lessons.settings.fold,
            lessons.runtime,
            configuration=lessons.configuration,
            tta=lessons.tta,
            tolerance_mm=lessons.tolerance_mm,
            jobs=lessons.jobs,
            resume=lessons.settings.resume,
            watch=lessons.watch,
        )
    return Student(record, model, held_out, index, initial)


def _pupil(lessons: Lessons, plan: Plan) -> Pupil:
    return Pupil(
        lessons.workspace, plan, lessons.configuration, lessons.index, lessons.settings.fold, lessons.unlabelled
    )


def _on_disk(lessons: Lessons, plan: Plan, teachers: tuple[Teacher, ...]) -> bool:
    """Whether the teachers' probabilities are kept on disk.

    Raises
    ------
    DistillationError
        If they have to be, and it was asked that they are not, or a term needs the teachers' feature maps.
    """
    from segpipe.distillation.spec import WITHOUT_TEACHER

    needing = [term for term in lessons.terms if term.weight and not isinstance(term, WITHOUT_TEACHER)]
    if not needing:
        return False
    looking = [term.name for term in needing if term.modules]
    because = why_on_disk(_pupil(lessons, plan), teachers)
    if because is None and lessons.teacher_tta:
        because = "--teacher-tta: mirror images of every patch would cost eight times the teacher"
    wanted = lessons.soft_labels
    if because is None:
        # On a CPU a look at every patch would cost more than the student's own step.
        wanted = lessons.runtime.device.type == "cpu" and not looking if wanted is None else wanted
        because = "--soft-labels" if wanted else None
    elif wanted is False:
        raise DistillationError(f"--no-soft-labels: the teachers cannot look at the student's patches: {because}")
    else:
        lessons.watch.note(f"the teachers' probabilities are kept on disk: {because}")
    if because is not None and looking:
        raise DistillationError(
            f"the term {looking[0]} looks at feature maps, and those of the teacher are not to be had: its probabilities are kept on "
            f"disk ({because}); give terms on logits, or a teacher of the same plan"
        )
    return because is not None


def _initial(plan: Plan, configuration: str, teachers: tuple[Teacher, ...], watch: Watch) -> InitialWeights | None:
    """The first teacher's weights, where any of its convolutions has the shape of the student's."""
    import torch

    from segpipe.networks.build import build_network
    from segpipe.training.initial import InitialWeights

    if not teachers:
        return None
    first, chosen = teachers[0], plan.configuration(configuration)
    with torch.random.fork_rng(devices=[]):
        own = build_network(chosen.network, plan.n_inputs(chosen), plan.labels.n_outputs).state_dict()
    given = first.model.folds[first.folds[0]]
    if not any(value.ndim > 1 and n in own and own[n].shape == value.shape for n, value in given.items()):
        watch.note("the student begins with fresh weights: none of the teacher's convolutions has its shape")
        return None
    return InitialWeights(first.path, first.folds[0], given)
