"""Distillation of a dataset's models: teachers, a student or a chain of them, and the evidence. Behind the command line."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from segpipe.errors import DistillationError
from segpipe.held_out import HeldOut, score_held_out
from segpipe.soft_labelling import Pupil, label_softly, why_on_disk
from segpipe.steps import (
    SILENT,
    FoldSettings,
    PathLike,
    alone_in,
    current_plan,
    plan_for_network,
    prepare_arrays,
    recipe_for,
    require_fold,
    train_fold,
    workspace_of,
)
from segpipe.watch import Watch
from segpipe.workspace import Workspace

if TYPE_CHECKING:
    from collections.abc import Sequence

    from segpipe.comparison.schema import Comparison
    from segpipe.distillation.spec import KdTerm
    from segpipe.distillation.teacher import Teacher
    from segpipe.planning.schema import Plan
    from segpipe.preprocessing.schema import PreprocessedIndex
    from segpipe.runtime import Runtime
    from segpipe.training.initial import InitialWeights
    from segpipe.training.schema import TrainingRecord

DEFAULT_STUDENT = "width=0.25"


@dataclass(frozen=True)
class Student:
    """A trained student."""

    record: TrainingRecord
    model: Path
    held_out: HeldOut | None
    """Scores of the held-out cases; None where none was held out."""


@dataclass(frozen=True)
class Distilled:
    """What ``distill`` made."""

    students: tuple[Student, ...]
    """One after the other where there is a chain; the last one is what was asked for."""
    alone: Student | None = None
    """The same network, trained without a teacher."""
    comparison: Comparison | None = None
    comparison_folder: Path | None = None

    @property
    def failed(self) -> dict[str, str]:
        """Cases that were lost on the way."""
        held = [s.held_out for s in (*self.students, *((self.alone,) if self.alone else ())) if s.held_out]
        return {case: reason for h in held for case, reason in h.failed.items()}


@dataclass(frozen=True)
class _Line:
    """What all students of one command share."""

    workspace: Workspace
    base: Plan
    configuration: str
    index: PreprocessedIndex
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


def distill(
    dataset: PathLike,
    *,
    teacher: PathLike | Sequence[PathLike] = (),
    student: str | Sequence[str] = DEFAULT_STUDENT,
    kd: Sequence[str] = (),
    recipe: PathLike = "distill",
    name: str = "distilled",
    configuration: str | None = None,
    fold: int | str = 0,
    teacher_folds: tuple[str, ...] = (),
    teacher_tta: bool = False,
    soft_labels: bool | None = None,
    unlabelled: PathLike | None = None,
    fresh: bool = False,
    baseline: bool = False,
    compare: bool = True,
    work: PathLike | None = None,
    epochs: int | None = None,
    minutes: float | None = None,
    device: str = "auto",
    jobs: int | None = None,
    seed: int = 0,
    deterministic: bool = False,
    tta: bool = True,
    tolerance_mm: float = 1.0,
    resume: bool = False,
    watch: Watch = SILENT,
) -> Distilled:
    """Train a small network that is taught by a large one, score it on the held-out cases, and hold both against each other.

    Parameters
    ----------
    dataset : path
        Folder or manifest.
    teacher : path, or several
        A model.segpipe, the folder that holds one, or nnU-Net's folder of a trained model; the probabilities of several, and of several
        folds, are averaged. None is needed where all terms are ``self`` or ``mutual``.
    student : str, or several
        ``width=0.25`` (the plan's own U-Net, narrower), or a network as NAME or NAME:key=value,...; of several, each is taught by the
        one before (a teaching assistant, or born-again networks).
    kd : sequence of str
        Terms as NAME or NAME:key=value,..., instead of the recipe's.
    recipe : str or path
        A shipped recipe of distillation, or a TOML file.
    name : str
        Under which the student is kept beside others of the same network.
    configuration : str, optional
        The teacher's, where the plan has it, unless given.
    fold : int or "all"
        Fold to hold out.
    teacher_folds : tuple of str
        Folds of the teachers; unless given, the one that held out the same cases where a teacher has it, else all.
    teacher_tta : bool
        Average soft labels over mirrored images.
    soft_labels : bool, optional
        Keep the teachers' probabilities of whole cases on disk, or let the teachers look at each patch. Unless given they are kept
        where they have to be (the teacher sees images in another way, or cases are not labelled), and where no term
        needs feature maps on a CPU, which then computes the teacher once.
    unlabelled : path, optional
        Folder of images, or manifest, without labels: they are trained on by the teachers' probabilities alone.
    fresh : bool
        Begin with fresh weights even where the teacher's fit.
    baseline : bool
        Also train the same student without a teacher, for as many epochs.
    compare : bool
        Measure and compare teacher and student when they are trained.
    work, epochs, minutes, device, jobs, seed, deterministic, tta, tolerance_mm, resume, watch
        As for ``segpipe.train``.
    """
    from segpipe.distillation.recipe import load_distillation_recipe
    from segpipe.distillation.spec import WITHOUT_TEACHER, parse_term
    from segpipe.distillation.teacher import Teacher
    from segpipe.runtime import choose_runtime

    chosen = load_distillation_recipe(recipe)
    terms = tuple(parse_term(text) for text in kd) or chosen.terms
    paths = [Path(teacher)] if isinstance(teacher, (str, Path)) else [Path(t) for t in teacher]
    networks = [student] if isinstance(student, str) else list(student)
    taught = any(term.weight and not isinstance(term, WITHOUT_TEACHER) for term in terms)
    if taught and not paths:
        raise DistillationError(
            "no --teacher: the terms need one; give a trained model, or --kd self or --kd mutual alone"
        )
    if unlabelled is not None and not taught:
        raise DistillationError(
            "--unlabelled: without a teacher nothing is known of these images; give --teacher and a term that needs it"
        )
    settings = FoldSettings(
        fold=fold, epochs=epochs, minutes=minutes, seed=seed, deterministic=deterministic, resume=resume
    )
    runtime, workspace = choose_runtime(device, deterministic=deterministic), workspace_of(dataset, work)
    teachers = tuple(Teacher.load(path, fold=fold, folds=teacher_folds) for path in paths)
    with alone_in(workspace, watch):
        base = current_plan(dataset, workspace, jobs, watch, recipe=recipe_for(runtime))
        where = configuration or _configuration(teachers, base)
        plans = _plans(workspace, base, networks, name, watch)
        for plan in plans:
            require_fold(workspace, plan, where, settings)
            if plan.configuration(where).previous_stage is not None:
                raise DistillationError(
                    f"configuration {where!r}: the second stage of a cascade cannot be a student; give another"
                )
        index = prepare_arrays(workspace, base, where, jobs, watch)
    line = _Line(
        workspace, base, where, index, runtime, settings, terms, chosen.cap, teacher_tta, soft_labels,
        None if unlabelled is None else Path(unlabelled), fresh, tta, tolerance_mm, jobs, watch,
    )  # fmt: skip
    students: list[Student] = []
    before = teachers
    for number, plan in enumerate(plans, start=1):
        if len(plans) > 1:
            watch.note(f"student {number} of {len(plans)}: {networks[number - 1]}")
        students.append(_student(line, plan, before))
        before = (Teacher.load(students[-1].model, fold=fold, folds=(str(fold),)),)
    alone = _alone(line, plans[-1], name, students[-1]) if baseline else None
    done = Distilled(tuple(students), alone)
    if not compare or fold == "all":
        return done
    from segpipe.comparing import compare as stage

    models = [*paths, *((alone.model,) if alone else ()), *(s.model for s in students)]
    folder = workspace.root / "comparisons" / workspace.place(where, plans[-1].recipe, fold)
    found = stage(
        models,
        dataset=dataset,
        work=workspace.root,
        fold=fold,
        folds={path: t.folds for path, t in zip(paths, teachers, strict=True)},
        output=folder,
        device=device,
        tta=tta,
        tolerance_mm=tolerance_mm,
        jobs=jobs,
        watch=watch,
    )
    return replace(done, comparison=found, comparison_folder=folder)


def _configuration(teachers: tuple[Teacher, ...], base: Plan) -> str:
    """The configuration that the teachers are of, where the plan has it."""
    theirs = {t.model.configuration for t in teachers if t.model.configuration in base.configurations}
    return theirs.pop() if len(theirs) == 1 else base.default_configuration()


def _plans(workspace: Workspace, base: Plan, networks: list[str], name: str, watch: Watch) -> list[Plan]:
    """Plans of the students, each written beside the workspace's under a name of its own."""
    made: list[Plan] = []
    for text in networks:
        plan = plan_for_network(workspace, base, _network(text), watch)
        taken = {p.recipe for p in made}
        variant = next(
            v for n in range(1, len(networks) + 1)
            if (v := _variant(plan, name if n == 1 else f"{name}-{n}")) not in taken
        )  # fmt: skip
        made.append(_kept(workspace, plan, variant))
    return made


def _network(text: str) -> str:
    """A student as a network: options alone are those of the plan's own U-Net."""
    return f"planned:{text}" if "=" in text.partition(":")[0] else text


def _variant(plan: Plan, name: str) -> str:
    return f"{plan.recipe}+{name}" if "+" not in plan.recipe else f"{plan.recipe}~{name}"


def _kept(workspace: Workspace, plan: Plan, variant: str) -> Plan:
    """The plan under another name: what is trained by it lies beside what was trained without a teacher."""
    named = plan.model_copy(update={"recipe": variant})
    named.write(workspace.plan_of(variant))
    return named


def _student(line: _Line, plan: Plan, teachers: tuple[Teacher, ...]) -> Student:
    """Let one student learn from its teachers, and score it."""
    from segpipe.distillation.guidance import Distillation

    configuration, watch = plan.configuration(line.configuration), line.watch
    for teacher in teachers:
        watch.note(f"teacher: {teacher.describe()}")
        if str(line.settings.fold) not in teacher.folds:
            watch.note(
                f"  it has no fold {line.settings.fold}: it may have seen the held-out cases, and scores of its students flatter"
            )
    index, soft = line.index, None
    if _on_disk(line, plan, teachers):
        pupil = Pupil(line.workspace, plan, line.configuration, line.index, line.settings.fold, line.unlabelled)
        soft = label_softly(pupil, teachers, line.runtime, tta=line.teacher_tta, jobs=line.jobs, watch=watch)
        index = soft.index
    guidance = Distillation(
        terms=line.terms,
        cap=line.cap,
        teachers=teachers,
        plan=plan,
        configuration=configuration,
        seed=line.settings.seed,
        soft_labels=None if soft is None else soft.folder,
        unlabelled=None if soft is None else soft.unlabelled,
    )
    watch.note(f"training on {line.runtime.describe()}")
    record = train_fold(
        line.workspace,
        plan,
        index,
        line.runtime,
        line.settings,
        configuration=line.configuration,
        watch=watch,
        guidance=guidance,
        initial=None if line.fresh else _initial(plan, line.configuration, teachers, watch),
    )
    return _scored(line, plan, record)


def _on_disk(line: _Line, plan: Plan, teachers: tuple[Teacher, ...]) -> bool:
    """Whether the teachers' probabilities are kept on disk."""
    from segpipe.distillation.spec import WITHOUT_TEACHER

    needing = [term for term in line.terms if term.weight and not isinstance(term, WITHOUT_TEACHER)]
    if not needing:
        return False
    because = why_on_disk(
        Pupil(line.workspace, plan, line.configuration, line.index, line.settings.fold, line.unlabelled), teachers
    )
    if because is None:
        # On a CPU a look at every patch would cost more than the student's own step.
        cheaper = line.runtime.device.type == "cpu" and not any(term.modules for term in needing)
        return cheaper if line.soft_labels is None else line.soft_labels
    if line.soft_labels is False:
        raise DistillationError(f"--no-soft-labels: the teachers cannot look at the student's patches: {because}")
    line.watch.note(f"the teachers' probabilities are kept on disk: {because}")
    return True


def _scored(line: _Line, plan: Plan, record: TrainingRecord) -> Student:
    """A trained student with its scores on the held-out cases."""
    model, held_out = line.workspace.model(line.configuration, plan.recipe), None
    if line.settings.fold != "all":
        held_out = score_held_out(
            line.workspace,
            plan,
            line.index,
            line.settings.fold,
            line.runtime,
            configuration=line.configuration,
            tta=line.tta,
            tolerance_mm=line.tolerance_mm,
            jobs=line.jobs,
            resume=line.settings.resume,
            watch=line.watch,
        )
    return Student(record, model, held_out)


def _alone(line: _Line, taught: Plan, name: str, student: Student) -> Student:
    """Train the last student once more, without a teacher: the same network, seed, patches and number of epochs."""
    plan = _kept(line.workspace, taught, f"{taught.recipe.removesuffix(name)}{name}-alone")
    settings = line.settings
    if settings.minutes is not None:
        # A teacher takes time; what is held against each other has seen the same number of patches.
        settings = replace(settings, minutes=None, epochs=max(student.record.epochs, 1))
    line.watch.note(f"the same student without a teacher, {settings.epochs or 'as many'} epochs")
    alone = replace(line, settings=settings)
    record = train_fold(
        line.workspace, plan, line.index, line.runtime, settings, configuration=line.configuration, watch=line.watch
    )
    return _scored(alone, plan, record)


def _initial(plan: Plan, configuration: str, teachers: tuple[Teacher, ...], watch: Watch) -> InitialWeights | None:
    """The first teacher's weights, where any of its convolutions has the shape of the student's."""
    import torch

    from segpipe.networks.build import build_network
    from segpipe.training.initial import InitialWeights

    if not teachers:
        return None
    first = teachers[0]
    chosen = plan.configuration(configuration)
    with torch.random.fork_rng(devices=[]):
        own = build_network(chosen.network, plan.n_inputs(chosen), plan.labels.n_outputs).state_dict()
    given = first.model.folds[first.folds[0]]
    fitting = [n for n, value in given.items() if value.ndim > 1 and n in own and own[n].shape == value.shape]
    if not fitting:
        watch.note("the student begins with fresh weights: none of the teacher's convolutions has its shape")
        return None
    return InitialWeights(first.path, first.folds[0], given)
