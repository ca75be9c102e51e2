"""`segpipe crossval`: nested cross-validation of everything that is chosen, as a graph of jobs that any number of workers may do."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segpipe.core.progress import SILENT, Watch
from segpipe.core.regular import lies
from segpipe.core.system_names import real_path
from segpipe.core.text import Table, shown
from segpipe.errors import ArtefactError, CrossvalError, TrainingInterrupted
from segpipe.execution.graph import STATES, State
from segpipe.version import __version__
from segpipe.workflows.checked import as_usage, require_device
from segpipe.workflows.options import CrossvalOptions
from segpipe.workflows.page import FAILED_CASES, Page, failures, plain, texts
from segpipe.workflows.planning import compare_with_recipe, recipe_for
from segpipe.workflows.project import Project, workspace_of, write_asked

if TYPE_CHECKING:
    from segpipe.crossvalidation.folder import CrossvalFolder, StudyFolder
    from segpipe.crossvalidation.schema import CrossvalDesign, CrossvalResult, CrossvalSplits
    from segpipe.crossvalidation.splits import Request
    from segpipe.dataset.fingerprint.schema import Fingerprint
    from segpipe.execution.graph import Job, JobEvent, Standing
    from segpipe.workflows.crossval.work import Task

_PROGRAM_BYTES = 1_500_000_000
"""What a process that trains holds beside its data: libraries, network, one batch being made."""


Counts = dict[State, int]
"""Jobs in each state."""


@dataclass(frozen=True)
class Crossvalidated:
    """Where a cross-validation stands, and what it measured so far."""

    folder: CrossvalFolder
    standings: dict[str, Standing]
    result: CrossvalResult | None = None
    """None where no outer fold is finished."""
    model: Path | None = None
    """Model of all cases, made by the rules that were measured."""
    failed: dict[str, str] = field(default_factory=dict)
    """Jobs and cases that were lost, with the reasons."""


def crossval(options: CrossvalOptions, watch: Watch = SILENT) -> Crossvalidated:
    """Choose and measure without a leak: outer folds measure, inner folds choose. The same command continues what was interrupted.

    Raises
    ------
    CrossvalError
        If there are too few groups, a group would be on two sides, or the workspace holds another cross-validation.
    TrainingInterrupted
        When a signal asked to stop.
    """
    from segpipe.crossvalidation.folder import CrossvalFolder
    from segpipe.execution.locks import locked
    from segpipe.workflows.crossval.asked import request_of, require_sound, require_together, settle, splits_asked

    if options.status:
        return crossval_status(workspace_of(options.dataset, options.work).root)
    with as_usage():
        require_together(options)
    if options.cluster is None:
        require_device(options.device)
    project = Project.open(options, watch)
    folder = CrossvalFolder(project.workspace)
    with locked(folder.root, wait=False):
        with project.alone():
            project.measure(resample_channels=options.resample_channels, grouped_later=True)
        design = _design(project, options)
        if options.cluster is None and options.recipe is None:
            compare_with_recipe(project, design.recipe.name, "--recipe {}")
        require_sound(design)
        request = request_of(project.matched, project.measured, options)
        divided = splits_asked(request, project.matched, options)
        if not lies(folder.design):
            _tell_groups(project, request, options)
        settle(folder, design, divided)
        write_asked(folder.root, "crossval", options)
        work = _Crossval(folder, design, divided)
        work.run(project, options)
        return work.finish(options.device)


def _design(project: Project, options: CrossvalOptions) -> CrossvalDesign:
    """Return what is chosen among and how, as it is asked for."""
    from segpipe.crossvalidation.schema import CrossvalDesign
    from segpipe.planning.recipe import load_recipe
    from segpipe.workflows.crossval.asked import N_INNER, candidates_asked

    recipe = load_recipe(recipe_for(project, options.recipe))
    listed, space = candidates_asked(options, project.measured, recipe)
    return CrossvalDesign(
        software=__version__,
        dataset_name=project.measured.dataset_name,
        recipe=recipe,
        candidates=listed,
        space=space,
        n_trials=options.trials,
        nested=options.nested,
        inner_folds=(options.inner_folds or N_INNER) if options.nested else 0,
        refit=options.refit,
        final=options.final,
        ensembles=options.ensembles,
        epochs=options.epochs,
        minutes=options.minutes,
        tta=options.tta,
        tolerance_mm=options.tolerance_mm,
        deterministic=options.deterministic,
        seed=options.seed,
    )


def crossval_status(work: Path | str) -> Crossvalidated:
    """Return where the cross-validation of a workspace stands; nothing is begun, and no case is looked at.

    Raises
    ------
    CrossvalError
        If the workspace holds none.
    """
    from segpipe.core.workspace import Workspace
    from segpipe.crossvalidation.folder import CrossvalFolder
    from segpipe.crossvalidation.schema import CrossvalDesign, CrossvalResult, CrossvalSplits
    from segpipe.execution.graph import Journal, standings
    from segpipe.execution.locks import is_locked

    folder = CrossvalFolder(Workspace(Path(work)))
    if not lies(folder.splits):
        raise CrossvalError(f"{folder.root}: holds no cross-validation; begin one with `segpipe crossval DATASET`")
    design, splits = CrossvalDesign.read(folder.design), CrossvalSplits.read(folder.splits)
    found = standings(_Crossval(folder, design, splits).graph("auto", None), Journal(folder.journal))
    if not is_locked(folder.root):
        # Whoever ran them was killed.
        for standing in found.values():
            standing.state = "waiting" if standing.state == "running" else standing.state
    result = None
    with suppress(ArtefactError):
        result = CrossvalResult.read(folder.result)
    return Crossvalidated(
        folder, found, result, folder.model if lies(folder.model) else None, {} if result is None else _lost(result)
    )


def _tell_groups(project: Project, request: Request, options: CrossvalOptions) -> None:
    """Report which cases belong together; where a pattern says so, it has to be believed first."""
    from segpipe.crossvalidation.groups import BY_CASE, describe_groups, is_pattern, looks_grouped

    groups, group_by, watch = dict(request.groups), options.group_by, project.watch
    watch.note(f"{len(groups)} usable cases in {len(set(groups.values()))} groups, by {request.grouped_by}")
    if is_pattern(project.matched, group_by) and not _believed(describe_groups(groups), options, watch):
        raise CrossvalError(
            f"--group-by {group_by}: these groups were not confirmed; correct the pattern, or confirm them with --yes"
        )
    for cases in project.measured.equal_images:
        watch.note(f"{', '.join(cases)} have equal images and are kept on one side")
    hint = looks_grouped(list(groups)) if request.grouped_by == BY_CASE and group_by is None else None
    if hint is not None:
        watch.note(hint)


def _believed(rows: list[tuple[str, str]], options: CrossvalOptions, watch: Watch) -> bool:
    """Return whether groups are right, as whoever asked for them says."""
    if options.believe is not None:
        return options.believe(rows)
    return watch.confirm("Groups by this pattern", rows, "Are these the patients?", yes=options.yes)


@dataclass(frozen=True)
class _Crossval:
    """A cross-validation that is designed and divided."""

    folder: CrossvalFolder
    design: CrossvalDesign
    splits: CrossvalSplits

    def graph(self, device: str, threads: int | None) -> list[Job]:
        """Return every job of every study, for workers with a device and so many threads."""
        from segpipe.crossvalidation.design import plan_study
        from segpipe.execution.graph import Job
        from segpipe.workflows.crossval.perform import perform
        from segpipe.workflows.crossval.work import Task

        jobs: list[Job] = []
        root, identity = real_path(self.folder.workspace.root), self.design.digest() + self.splits.digest()
        for study in self.splits.studies:
            blank = Task("", root, study.name, device=device, threads=threads)
            place = self.folder.study(study.name)

            def make(
                kind: str,
                *,
                needs: Sequence[str] = (),
                after: Sequence[str] = (),
                blank: Task = blank,
                place: StudyFolder = place,
                **which: Any,
            ) -> str:
                task = replace(blank, kind=kind, **which)
                artefact = place.job(task.name) / "done.json"
                jobs.append(Job(task.id, perform, (task,), tuple(needs), tuple(after), artefact, identity))
                return task.id

            plan_study(self.design, study, make)
        return jobs

    def run(self, project: Project, options: CrossvalOptions) -> None:
        """Do what is not done.

        Raises
        ------
        TrainingInterrupted
            When a signal asked to stop.
        """
        from segpipe.crossvalidation.design import n_candidates
        from segpipe.execution.graph import Journal, run_graph
        from segpipe.execution.processes import open_executor
        from segpipe.execution.signals import stop_requests
        from segpipe.workflows.crossval.workers import plan_workers

        bytes_each = _job_bytes(self.design, project.measured)
        if options.cluster is None:
            n_trainings = sum(len(study.inner) for study in self.splits.studies) * n_candidates(self.design)
            local = plan_workers(options.device, n_trainings, bytes_each, workers=options.jobs, threads=options.threads)
            where = f"{local.n_workers} process(es) of {local.threads} thread(s)"
            environments, graph = local.environments, self.graph(local.device, local.threads)
        else:
            where, environments, graph = options.cluster, (), self.graph(options.device, options.threads)
        watch = project.watch
        final = " and the final model" if self.design.final else ""
        watch.note(
            f"{len(graph)} jobs of {len(self.splits.outer)} outer fold(s){final}, on {where}; everything is in {self.folder.root}"
        )
        n_workers = len(environments) or options.jobs or 1
        with (
            closing(Journal(self.folder.journal)) as journal,
            stop_requests() as request,
            open_executor(options.cluster, n_workers, environments=environments, bytes_each=bytes_each) as executor,
            watch.counting("cross-validating", len(graph)) as done,
        ):
            run_graph(
                graph,
                executor,
                journal,
                retries=options.retries,
                stop=lambda: bool(request),
                on_event=_teller(watch, done),
                capacity=executor.capacity,
            )
            if request.signal_number is not None:
                raise TrainingInterrupted(
                    f"stopped by {request.name_of(request.signal_number)}; what is done is kept: the same command continues",
                    signal_number=request.signal_number,
                )

    def finish(self, device: str) -> Crossvalidated:
        """Bring together what is done by now, and report on it."""
        from segpipe.execution.graph import Journal, standings
        from segpipe.reporting.crossval import bring_together

        found = standings(self.graph(device, None), Journal(self.folder.journal))
        result, model = bring_together(self.folder, self.design, self.splits, found)
        if result is None:
            lost = {job: s.reason for job, s in found.items() if s.state in ("failed", "blocked")}
            return Crossvalidated(self.folder, found, None, model, lost or {"all cases": "none was scored"})
        return Crossvalidated(self.folder, found, result, model, _lost(result))


def _teller(watch: Watch, done: Callable[[str], None]) -> Callable[[JobEvent], None]:
    def tell(event: JobEvent) -> None:
        if event.standing.state in ("done", "failed", "blocked"):
            done(event.job.id)
        if event.standing.state == "failed":
            watch.note(f"{event.job.id}: {event.standing.reason}")

    return tell


def _job_bytes(design: CrossvalDesign, measured: Fingerprint) -> int:
    """Forecast of what a job holds at most: the program, a training step of the planned budget, and the largest case several times over."""
    voxels = max(case.shape[0] * case.shape[1] * case.shape[2] for case in measured.cases)
    copies = 4 * (len(measured.channel_names) + 2)
    return int(_PROGRAM_BYTES + 2e9 * design.recipe.planner.budget_gb + 4 * copies * voxels)


def by_study(found: Mapping[str, Standing]) -> tuple[dict[str, Counts], Counts]:
    """Return how many jobs of each study, and of all, are in each state."""
    from segpipe.execution.graph import counts

    studies: dict[str, list[Standing]] = {}
    for job, standing in found.items():
        studies.setdefault(job.partition("/")[0], []).append(standing)
    return {name: counts(some) for name, some in studies.items()}, counts(found.values())


def _lost(result: CrossvalResult) -> dict[str, str]:
    return result.unfinished | dict(lost.told for lost in result.lost)


def page(done: Crossvalidated, options: CrossvalOptions) -> Page:
    """Show where it stands, or what was measured."""
    if options.status:
        return _status_page(done)
    folder, result = done.folder, done.result
    where = {
        "report": folder.page, "table": folder.table, "methods": folder.methods, "result": folder.result, "splits": folder.splits,
    }  # fmt: skip
    where = {name: path for name, path in where.items() if lies(path)}
    measured = [] if result is None else _measured(result)
    model = [] if done.model is None else [f"model: segpipe predict IMAGES OUTPUT --model {done.model}"]
    parts: list[str | Table] = [
        *failures("Lost", done.failed),
        *measured,
        *(f"{name}: {path}" for name, path in where.items()),
        *model,
    ]
    values = {"result": plain(result), "model": done.model, "failed": done.failed, **texts(where)}
    return Page(values, parts, exit_code=FAILED_CASES if done.failed else 0)


def _measured(result: CrossvalResult) -> list[Table]:
    rows = []
    for label, found in result.scores.items():
        dice = found["dice"]
        interval = f"{shown(dice.low)} to {shown(dice.high)}"
        others = [shown(found["nsd"].mean), shown(found["hd95_mm"].mean, 2), shown(dice.between_folds_sd)]
        rows.append([label, shown(dice.mean), interval, shown(dice.median), *others, str(dice.n_patients)])
    kind = "Nested cross-validation" if result.nested else "Not nested, so optimistic"
    nsd = f"NSD {result.tolerance_mm:g} mm"
    columns = ["label", "Dice", "95 % CI", "median", nsd, "HD95 mm", "SD between folds", "patients"]
    title = f"{kind}: {result.n_cases} case(s), each by a model that was made without it"
    chosen = [[study, " + ".join(winner)] for study, winner in result.chosen.items()]
    return [Table(title, columns, rows, range(1, 8)), Table("Chosen", ["outer fold", "candidate"], chosen)]


def _status_page(standing: Crossvalidated) -> Page:
    counted, total = by_study(standing.standings)
    lost = {job: s.reason or "" for job, s in standing.standings.items() if s.state in ("failed", "blocked")}
    running = [job for job, s in standing.standings.items() if s.state == "running"]
    rows = [[name, *(str(found[state]) for state in STATES)] for name, found in (*counted.items(), ("all", total))]
    parts: list[str | Table] = [
        Table(f"Jobs of {standing.folder.root}", ["outer fold", *STATES], rows, range(1, 6)),
        *([f"running: {', '.join(running)}"] if running else []),
        *([Table("Lost", ["job", "reason"], [[job, reason] for job, reason in lost.items()])] if lost else []),
    ]
    return Page({"studies": counted, "running": running, "lost": lost, "result": plain(standing.result)}, parts)
