"""Students of a workspace: taught, or trained alone, and scored on the held-out cases."""

from __future__ import annotations

import gc
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from segpipe.errors import DistillationError
from segpipe.training.settings import FoldSettings
from segpipe.workflows.distill.soft_labels import StudentContext, label_softly, why_on_disk
from segpipe.workflows.fold import doubt_of_folds, train_fold
from segpipe.workflows.held_out import HeldOut, score_held_out

if TYPE_CHECKING:
    from segpipe.core.progress import Watch
    from segpipe.core.workspace import Workspace
    from segpipe.distillation.spec import KdTerm
    from segpipe.distillation.teacher import Teacher
    from segpipe.execution.device import Runtime
    from segpipe.planning.schema import Plan
    from segpipe.preprocessing.schema import PreprocessedIndex
    from segpipe.training.initial import InitialWeights
    from segpipe.training.schema import TrainingRecord


@dataclass(frozen=True)
class DistillationRun:
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


def teach(run: DistillationRun, plan: Plan, teachers: tuple[Teacher, ...]) -> Student:
    """Let one student learn from its teachers, and score it.

    Raises
    ------
    DistillationError
        If the teachers cannot teach it.
    """
    from segpipe.distillation.guidance import Distillation

    watch, fold = run.watch, run.settings.fold
    for teacher in teachers:
        watch.note(f"teacher: {teacher.describe()}")
        doubt = doubt_of_folds(teacher.path, teacher.folds, fold, run.workspace)
        if doubt:
            watch.note(f"  {doubt}")
    soft = None
    if _on_disk(run, plan, teachers):
        soft = label_softly(
            _student(run, plan),
            teachers,
            run.runtime,
            tta=run.teacher_tta,
            jobs=run.jobs,
            watch=watch,
        )
    guidance = Distillation(
        terms=run.terms,
        cap=run.cap,
        teachers=teachers,
        plan=plan,
        configuration=plan.configuration(run.configuration),
        seed=run.settings.seed,
        soft_labels=None if soft is None else soft.folder,
        unlabelled=None if soft is None else soft.unlabelled,
    )
    index = run.index if soft is None else soft.index
    initial = None if run.fresh else _initial(plan, run.configuration, teachers, watch)
    watch.note(f"training on {run.runtime.describe()}")
    record = train_fold(
        run.workspace,
        plan,
        index,
        run.runtime,
        run.settings,
        configuration=run.configuration,
        watch=watch,
        guidance=guidance,
        initial=initial,
    )
    student = _scored(run, plan, record, index, initial)
    return student if soft is None else replace(student, unusable=soft.unusable)


def train_alone(run: DistillationRun, plan: Plan, taught: Student) -> Student:
    """Train a student once more without its teachers: the same network, first weights, seed, cases and length.

    Where the length was given in minutes, of which a teacher takes some, it is the number of epochs that the taught one came to.
    """
    settings = run.settings
    if settings.minutes is not None:
        settings = replace(settings, minutes=None, epochs=_epochs_of(run, plan, taught.record))
    run.watch.note("the same student without a teacher")
    record = train_fold(
        run.workspace,
        plan,
        taught.index,
        run.runtime,
        settings,
        configuration=run.configuration,
        watch=run.watch,
        initial=taught.initial,
    )
    return _scored(run, plan, record, taught.index, taught.initial)


def _epochs_of(run: DistillationRun, plan: Plan, record: TrainingRecord) -> int:
    """Epochs that a training's iterations come to, at least one."""
    from segpipe.dataset.fingerprint.schema import Fingerprint
    from segpipe.training.schedule import make_schedule
    from segpipe.workflows.project import splits_of

    splits = splits_of(run.workspace, Fingerprint.read(run.workspace.fingerprint))
    n_cases = len(set(splits.fold(run.settings.fold).train) & set(run.index.cases))
    batch = plan.configuration(run.configuration).batch_size
    schedule = make_schedule(plan.training, n_cases, batch, epochs=None, minutes=None)
    return max(round(record.iterations / schedule.iterations_per_epoch), 1)


def _scored(
    run: DistillationRun, plan: Plan, record: TrainingRecord, index: PreprocessedIndex, initial: InitialWeights | None
) -> Student:
    """A trained student with its scores on the held-out cases."""
    import torch

    # What training held (cases on a GPU, teachers, a second student) refers to itself; the next one needs the memory.
    gc.collect()
    if run.runtime.device.type == "cuda":
        torch.cuda.empty_cache()
    model, held_out = run.workspace.model(run.configuration, plan.recipe), None
    if run.settings.fold != "all":
        held_out = score_held_out(
            run.workspace,
            plan,
            index,
            run.settings.fold,
            run.runtime,
            configuration=run.configuration,
            tta=run.tta,
            tolerance_mm=run.tolerance_mm,
            jobs=run.jobs,
            resume=run.settings.resume,
            watch=run.watch,
        )
    return Student(record, model, held_out, index, initial)


def _student(run: DistillationRun, plan: Plan) -> StudentContext:
    return StudentContext(run.workspace, plan, run.configuration, run.index, run.settings.fold, run.unlabelled)


def _on_disk(run: DistillationRun, plan: Plan, teachers: tuple[Teacher, ...]) -> bool:
    """Whether the teachers' probabilities are kept on disk.

    Raises
    ------
    DistillationError
        If they have to be, and it was asked that they are not, or a term needs the teachers' feature maps.
    """
    from segpipe.distillation.spec import WITHOUT_TEACHER

    needing = [term for term in run.terms if term.weight and not isinstance(term, WITHOUT_TEACHER)]
    if not needing:
        return False
    looking = [term.name for term in needing if term.modules]
    because = why_on_disk(_student(run, plan), teachers)
    if because is None and run.teacher_tta:
        because = "--teacher-tta: mirror images of every patch would cost eight times the teacher"
    wanted = run.soft_labels
    if because is None:
        # On a CPU a look at every patch would cost more than the student's own step.
        wanted = run.runtime.device.type == "cpu" and not looking if wanted is None else wanted
        because = "--soft-labels" if wanted else None
    elif wanted is False:
        raise DistillationError(f"--no-soft-labels: the teachers cannot look at the student's patches: {because}")
    else:
        run.watch.note(f"the teachers' probabilities are kept on disk: {because}")
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
