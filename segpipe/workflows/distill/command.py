"""`segpipe distill`: teachers, a student or a chain of them, and the evidence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from uuid import uuid4

from segpipe.core.progress import SILENT, Watch
from segpipe.core.system_names import real_path
from segpipe.distillation.recipe import load_distillation_recipe
from segpipe.distillation.spec import WITHOUT_TEACHER, KdTerm, parse_term
from segpipe.distillation.teacher import Teacher
from segpipe.errors import DistillationError
from segpipe.evaluation.comparison import Comparison
from segpipe.execution.processes import open_executor
from segpipe.planning.schema import Plan
from segpipe.workflows.arrays import prepare_arrays
from segpipe.workflows.checked import (
    as_usage,
    require_configuration,
    require_device,
    require_fold_there,
    require_models,
    require_network,
    require_offered_fold,
)
from segpipe.workflows.compare.command import compare, tables
from segpipe.workflows.distill.student import DistillationRun, Student, teach, train_alone
from segpipe.workflows.fold import FoldWork, require_fold
from segpipe.workflows.options import CompareOptions, DistillOptions
from segpipe.workflows.page import Page, places, plain, scores
from segpipe.workflows.planning import (
    compare_with_recipe,
    current_plan,
    keep_plan_as,
    plan_for_network,
    variant_called,
)
from segpipe.workflows.project import Project, workspace_of


@dataclass(frozen=True)
class Distilled:
    """What `segpipe distill` made."""

    students: tuple[Student, ...]
    """One after the other where there is a chain; the last one is what was asked for."""
    alone: Student | None = None
    """The same network, trained without a teacher."""
    comparison: Comparison | None = None
    comparison_folder: Path | None = None
    failed: dict[str, str] = field(default_factory=dict)
    """Cases that were lost on the way, with the stage and the reason."""


def distill(options: DistillOptions, watch: Watch = SILENT) -> Distilled:
    """Train a small network that is taught by a large one, score it on the held-out cases, and compare both."""
    if options.cluster is not None:
        return _distill_elsewhere(options, watch)

    fold = options.fold
    with as_usage():
        recipe = load_distillation_recipe(options.recipe)
        terms = tuple(parse_term(text) for text in options.kd) or recipe.terms
    require_device(options.device)
    require_models(options.teacher, "--teacher")
    for text in options.student:
        require_network(_network(text))
    project = Project.open(options, watch)
    require_configuration(options.configuration, project.workspace)
    require_offered_fold(fold, project.workspace, project.dataset)
    teachers = tuple(Teacher.load(path, fold=fold, folds=options.teacher_folds) for path in options.teacher)
    with as_usage():
        _require_teachers(terms, teachers, unlabelled=options.unlabelled is not None)
    with project.alone():
        base = current_plan(project)
        require_fold_there(fold, project.splits)
        where = options.configuration or _configuration(teachers, base)
        plans = _plans(project, base, options)
        without = keep_plan_as(project, plans[-1], f"{plans[-1].recipe}-alone") if options.baseline else None
        run = DistillationRun(project, where, options, terms, recipe.cap)
        for plan in plans:
            _require_student(run.work(plan))
        if without is not None:
            # How long it is trained follows from the taught one.
            untaught = run.work(without)
            _require_student(replace(untaught, settings=replace(untaught.settings, epochs=None, minutes=None)))
        compare_with_recipe(project, base.recipe, "a plan by `segpipe plan --recipe {}`")
        run = replace(run, index=prepare_arrays(project, base, where))
    students: list[Student] = []
    before = teachers
    for number, plan in enumerate(plans, start=1):
        if len(plans) > 1:
            watch.note(f"student {number} of {len(plans)}: {options.student[number - 1]}")
        # Whoever is taught by a student starts anew, as born-again networks do.
        students.append(teach(run if number == 1 else replace(run, fresh=True), plan, before))
        before = (Teacher.load(students[-1].model, fold=fold, folds=(str(fold),)),)
    alone = None if without is None else train_alone(run, without, students[-1])
    work = run.work(plans[-1])
    done = Distilled(tuple(students), alone, failed=_failed([*students, *([alone] if alone else [])]))
    return _compared(done, work, options, teachers) if options.compare and fold != "all" else done


def _compared(done: Distilled, work: FoldWork, options: DistillOptions, teachers: tuple[Teacher, ...]) -> Distilled:
    """Add the comparison of teachers, the student alone, and the students."""
    folder = work.project.workspace.root / "comparisons" / work.place
    alone = () if done.alone is None else (done.alone.model,)
    asked = CompareOptions(
        models=(*options.teacher, *alone, *(s.model for s in done.students)),
        dataset=options.dataset,
        work=work.project.workspace.root,
        fold=options.fold,
        folds={t.path: t.folds for t in teachers},
        output=folder,
        device=options.device,
        tta=options.tta,
        tolerance_mm=options.tolerance_mm,
        jobs=options.jobs,
    )
    found = compare(asked, work.project.watch)
    lost = {f"{name}: {case}": why for name, s in found.scores.items() for case, why in s.failed.items()}
    return replace(done, comparison=found, comparison_folder=folder, failed=done.failed | lost)


def _distill_elsewhere(options: DistillOptions, watch: Watch) -> Distilled:
    """Have a worker of a cluster do it; where the worker is lost, another one goes on from its last checkpoint."""
    # The worker's current folder is another one.
    root = real_path(workspace_of(options.dataset, options.work).root)
    asked = replace(options.resolved(), work=root, cluster=None)
    begun = root / f".distilling-{uuid4().hex}"
    assert options.cluster is not None
    with open_executor(options.cluster, 1) as executor:
        watch.note(f"distilling on {options.cluster}; it is logged in {root / 'models'}")
        try:
            return executor.submit(_go_on, asked, begun).result()
        finally:
            begun.unlink(missing_ok=True)


def _go_on(options: DistillOptions, begun: Path) -> Distilled:
    """Distil; a second call goes on with what the first one left."""
    again = begun.exists()
    begun.parent.mkdir(parents=True, exist_ok=True)
    begun.touch()
    return distill(replace(options, resume=options.resume or again))


def _require_student(work: FoldWork) -> None:
    """Raise where a student cannot be trained."""
    require_fold(work, "give another --name to train a student longer")
    if work.plan.configuration(work.configuration).previous_stage is not None:
        raise DistillationError(
            f"configuration {work.configuration!r}: the second stage of a cascade cannot be a student; give another"
        )


def _require_teachers(terms: tuple[KdTerm, ...], teachers: tuple[Teacher, ...], *, unlabelled: bool) -> None:
    """Raise where the terms need a teacher that is not given, or one is given twice."""
    taught = any(term.weight and not isinstance(term, WITHOUT_TEACHER) for term in terms)
    if taught and not teachers:
        raise DistillationError(
            "no --teacher: the terms need one; give a trained model, or --kd self or --kd mutual alone"
        )
    if unlabelled and not taught:
        raise DistillationError(
            "--unlabelled: without a teacher nothing is known of these images; give --teacher and a term that needs it"
        )
    if len({real_path(t.path) for t in teachers}) < len(teachers):
        raise DistillationError("a --teacher is given twice; give each once")


def _failed(students: Sequence[Student]) -> dict[str, str]:
    """Return the cases that any of them lost."""
    return {case: reason for student in students for case, reason in student.failed.items()}


def _configuration(teachers: tuple[Teacher, ...], base: Plan) -> str:
    """Return the configuration that the teachers are of, where the plan has it."""
    theirs = {t.model.configuration for t in teachers if t.model.configuration in base.configurations}
    return theirs.pop() if len(theirs) == 1 else base.default_configuration()


def _plans(project: Project, base: Plan, options: DistillOptions) -> list[Plan]:
    """Return the plans of the students, each written beside the workspace's under a name of its own."""
    made: list[Plan] = []
    for text in options.student:
        plan = plan_for_network(project, base, _network(text))
        taken = {p.recipe for p in made}
        names = [options.name, *(f"{options.name}-{n}" for n in range(2, len(options.student) + 1))]
        variant = next(v for v in (variant_called(plan, n) for n in names) if v not in taken)
        made.append(keep_plan_as(project, plan, variant))
    return made


def _network(text: str) -> str:
    """Return a student as a network: options alone are those of the plan's own U-Net."""
    return f"planned:{text}" if "=" in text.partition(":")[0] else text


def page(done: Distilled, _: DistillOptions) -> Page:
    """Show what teacher and student take and keep."""
    last = done.students[-1]
    scored = None if last.held_out is None else last.held_out.evaluation
    values = {
        "models": [str(s.model) for s in done.students],
        "alone": None if done.alone is None else str(done.alone.model),
        "training": plain(last.record),
        "evaluation": plain(scored),
        "comparison": plain(done.comparison),
        "failed": done.failed,
    }
    compared = [] if done.comparison is None else tables(done.comparison)
    own = scores(scored) if scored is not None and done.comparison is None else []
    where = {"model": last.model} | ({} if done.comparison_folder is None else {"comparison": done.comparison_folder})
    return Page(values, [*compared, *own, *places(where)], done.failed)
