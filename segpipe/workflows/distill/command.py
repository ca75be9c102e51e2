"""Distillation of a dataset's models: teachers, a student or a chain of them, and the evidence. Behind the command line."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from segpipe.core.progress import SILENT, Watch
from segpipe.core.workspace import PathLike, Workspace
from segpipe.errors import DistillationError
from segpipe.training.settings import FoldSettings
from segpipe.workflows.distill.student import DistillationRun, Student, teach, train_alone
from segpipe.workflows.fold import prepare_arrays, require_fold
from segpipe.workflows.planning import current_plan, keep_plan_as, plan_for_network, recipe_for, variant_called
from segpipe.workflows.project import alone_in, workspace_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from segpipe.distillation.spec import KdTerm
    from segpipe.distillation.teacher import Teacher
    from segpipe.evaluation.comparison import Comparison
    from segpipe.planning.schema import Plan

DEFAULT_STUDENT = "width=0.25"


@dataclass(frozen=True)
class Distilled:
    """What ``distill`` made."""

    students: tuple[Student, ...]
    """One after the other where there is a chain; the last one is what was asked for."""
    alone: Student | None = None
    """The same network, trained without a teacher."""
    comparison: Comparison | None = None
    comparison_folder: Path | None = None
    failed: dict[str, str] = field(default_factory=dict)
    """Cases that were lost on the way, with the stage and the reason."""


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
    cluster: str | None = None,
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
        Begin with fresh weights even where the first teacher's have the student's shapes.
    baseline : bool
        Also train the (last) student without a teacher, in all else alike.
    compare : bool
        Measure and compare teacher and student when they are trained.
    cluster : str, optional
        Address of a Dask scheduler, or ``slurm``: one of its workers does all of it, and sees the same files under the same paths.
    work, epochs, minutes, device, jobs, seed, deterministic, tta, tolerance_mm, resume, watch
        As for ``segpipe.train``.
    """
    asked = dict(locals())
    if cluster is not None:
        return _distill_elsewhere(asked)
    from segpipe.distillation.recipe import load_distillation_recipe
    from segpipe.distillation.spec import parse_term
    from segpipe.distillation.teacher import Teacher
    from segpipe.execution.device import choose_runtime

    chosen = load_distillation_recipe(recipe)
    terms = tuple(parse_term(text) for text in kd) or chosen.terms
    paths = [Path(teacher)] if isinstance(teacher, (str, Path)) else [Path(t) for t in teacher]
    networks = [student] if isinstance(student, str) else list(student)
    settings = FoldSettings(
        fold=fold, epochs=epochs, minutes=minutes, seed=seed, deterministic=deterministic, resume=resume
    )
    runtime, workspace = choose_runtime(device, deterministic=deterministic), workspace_of(dataset, work)
    teachers = tuple(Teacher.load(path, fold=fold, folds=teacher_folds) for path in paths)
    _require_teachers(terms, teachers, unlabelled=unlabelled is not None)
    with alone_in(workspace, watch):
        base = current_plan(dataset, workspace, jobs, watch, recipe=recipe_for(runtime))
        where = configuration or _configuration(teachers, base)
        plans = _plans(workspace, base, networks, name, watch)
        without = keep_plan_as(workspace, plans[-1], f"{plans[-1].recipe}-alone") if baseline else None
        for plan in (*plans, *((without,) if without else ())):
            require_fold(workspace, plan, where, settings)
            if plan.configuration(where).previous_stage is not None:
                raise DistillationError(
                    f"configuration {where!r}: the second stage of a cascade cannot be a student; give another"
                )
        index = prepare_arrays(workspace, base, where, jobs, watch)
    run = DistillationRun(
        workspace=workspace,
        configuration=where,
        index=index,
        runtime=runtime,
        settings=settings,
        terms=terms,
        cap=chosen.cap,
        teacher_tta=teacher_tta,
        soft_labels=soft_labels,
        unlabelled=None if unlabelled is None else Path(unlabelled),
        fresh=fresh,
        tta=tta,
        tolerance_mm=tolerance_mm,
        jobs=jobs,
        watch=watch,
    )
    students: list[Student] = []
    before = teachers
    for number, plan in enumerate(plans, start=1):
        if len(plans) > 1:
            watch.note(f"student {number} of {len(plans)}: {networks[number - 1]}")
        # Whoever is taught by a student starts anew, as born-again networks do.
        students.append(teach(run if number == 1 else replace(run, fresh=True), plan, before))
        before = (Teacher.load(students[-1].model, fold=fold, folds=(str(fold),)),)
    alone = None if without is None else train_alone(run, without, students[-1])
    done = Distilled(tuple(students), alone, failed=_failed([*students, *([alone] if alone else [])]))
    if not compare or fold == "all":
        return done
    from segpipe.workflows.compare.command import compare as stage

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
    lost = {f"{name}: {case}": why for name, s in found.scores.items() for case, why in s.failed.items()}
    return replace(done, comparison=found, comparison_folder=folder, failed=done.failed | lost)


def _distill_elsewhere(asked: dict[str, Any]) -> Distilled:
    """Have a worker of a cluster do it; where the worker is lost, another one goes on from its last checkpoint."""
    from segpipe.execution.processes import open_executor

    cluster, watch = asked.pop("cluster"), asked.pop("watch")
    workspace = workspace_of(asked["dataset"], asked["work"])
    teachers = asked["teacher"]
    teachers = (teachers,) if isinstance(teachers, (str, Path)) else teachers
    recipe, unlabelled = asked["recipe"], asked["unlabelled"]
    # The worker's current folder is another one.
    asked |= {
        "dataset": Path(asked["dataset"]).resolve(),
        "work": workspace.root.resolve(),
        "teacher": tuple(Path(path).resolve() for path in teachers),
        "recipe": Path(recipe).resolve() if Path(recipe).suffix == ".toml" else recipe,
        "unlabelled": None if unlabelled is None else Path(unlabelled).resolve(),
    }
    begun = asked["work"] / f".distilling-{uuid4().hex}"
    with open_executor(cluster, 1) as executor:
        watch.note(f"distilling on {cluster}; it is logged in {asked['work'] / 'models'}")
        try:
            return executor.submit(_go_on, asked, begun).result()
        finally:
            begun.unlink(missing_ok=True)


def _go_on(asked: dict[str, Any], begun: Path) -> Distilled:
    """Distil; a second call goes on with what the first one left."""
    again = begun.exists()
    begun.parent.mkdir(parents=True, exist_ok=True)
    begun.touch()
    return distill(**asked | {"resume": asked["resume"] or again})


def _require_teachers(terms: tuple[KdTerm, ...], teachers: tuple[Teacher, ...], *, unlabelled: bool) -> None:
    """Raise where the terms need a teacher that is not given, or one is given twice."""
    from segpipe.distillation.spec import WITHOUT_TEACHER

    taught = any(term.weight and not isinstance(term, WITHOUT_TEACHER) for term in terms)
    if taught and not teachers:
        raise DistillationError(
            "no --teacher: the terms need one; give a trained model, or --kd self or --kd mutual alone"
        )
    if unlabelled and not taught:
        raise DistillationError(
            "--unlabelled: without a teacher nothing is known of these images; give --teacher and a term that needs it"
        )
    if len({t.path.resolve() for t in teachers}) < len(teachers):
        raise DistillationError("a --teacher is given twice; give each once")


def _failed(students: list[Student]) -> dict[str, str]:
    """Cases that any of them lost."""
    return {case: reason for student in students for case, reason in student.failed.items()}


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
        names = [name, *(f"{name}-{n}" for n in range(2, len(networks) + 1))]
        variant = next(v for v in (variant_called(plan, n) for n in names) if v not in taken)
        made.append(keep_plan_as(workspace, plan, variant))
    return made


def _network(text: str) -> str:
    """A student as a network: options alone are those of the plan's own U-Net."""
    return f"planned:{text}" if "=" in text.partition(":")[0] else text
