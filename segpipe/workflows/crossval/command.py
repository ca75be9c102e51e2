"""`crossval`: nested cross-validation of everything that is chosen, as a graph of jobs that any number of workers may do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from segpipe.core.progress import SILENT, Watch
from segpipe.core.workspace import PathLike
from segpipe.errors import ArtefactError, CrossvalError, TrainingInterrupted
from segpipe.training.settings import FoldSettings
from segpipe.version import __version__
from segpipe.workflows.planning import recipe_for
from segpipe.workflows.project import alone_in, fingerprint, workspace_of

if TYPE_CHECKING:
    from segpipe.crossvalidation.folder import CrossvalFolder
    from segpipe.crossvalidation.schema import CrossvalDesign, CrossvalResult, CrossvalSplits
    from segpipe.crossvalidation.splits import Request
    from segpipe.dataset.fingerprint.schema import Fingerprint
    from segpipe.dataset.schema import Dataset
    from segpipe.execution.graph import Job, JobEvent, Standing

_PROGRAM_BYTES = 1_500_000_000
"""What a process that trains holds beside its data: libraries, network, one batch being made."""


@dataclass(frozen=True)
class Crossvalidated:
    """Where a cross-validation stands, and what it measured so far."""

    folder: CrossvalFolder
    standings: dict[str, Standing]
    result: CrossvalResult | None = None
    """None where no outer fold is finished."""
    model: Path | None = None
    """Of all cases, made by the rules that were measured."""
    failed: dict[str, str] = field(default_factory=dict)
    """Jobs and cases that were lost, with the reasons."""


def crossval(
    dataset: PathLike,
    *,
    work: PathLike | None = None,
    folds: int | None = None,
    repeats: int = 1,
    leave_out: str | None = None,
    test_set: PathLike | None = None,
    splits: PathLike | None = None,
    group_by: str | None = None,
    stratify_by: Sequence[str] = (),
    nested: bool = True,
    inner_folds: int | None = None,
    candidates: Sequence[str] | str = (),
    trials: int | None = None,
    ensembles: bool = True,
    refit: bool = False,
    final: bool = True,
    recipe: PathLike | None = None,
    epochs: int | None = None,
    minutes: float | None = None,
    tta: bool = True,
    tolerance_mm: float = 1.0,
    resample_channels: bool | None = None,
    device: str = "auto",
    cluster: str | None = None,
    jobs: int | None = None,
    threads: int | None = None,
    retries: int = 1,
    seed: int = 0,
    deterministic: bool = False,
    believe: Callable[[list[tuple[str, str]]], bool] = lambda _: True,
    watch: Watch = SILENT,
) -> Crossvalidated:
    """Choose and measure without a leak: outer folds measure, inner folds choose. What is done already is never done again.

    Parameters
    ----------
    dataset : path
        Folder or manifest.
    work : path, optional
        The workspace; on a cluster every worker must see it under the same path.
    folds : int, optional
        Outer folds: 5 unless given, or what divides the cases otherwise says.
    repeats : int
        How often the cases are divided anew.
    leave_out : str, optional
        A column of the manifest, each of whose values is an outer fold.
    test_set : path or str, optional
        One outer fold alone: a file with a case id a line, or COLUMN=VALUE.
    splits : path, optional
        Outer folds of nnU-Net's splits_final.json, or of a splits.json of segpipe.
    group_by : str, optional
        A column, or a pattern on case ids, by which cases belong together; the column ``patient`` where there is one, unless given.
    stratify_by : sequence of str
        Columns to be spread evenly over folds; ``labels`` for presence and volume of every label.
    nested : bool
        Without it one level of folds both chooses and measures, and scores flatter.
    inner_folds : int, optional
        Folds of each outer training set: 3 unless given.
    candidates : sequence of str, or str
        As CONFIGURATION[+NETWORK][@setting=value,...], or a TOML file with alternatives; 2d and 3d_fullres unless given.
    trials : int, optional
        Search among the file's alternatives by Optuna, with so many trials in each study, instead of trying all.
    ensembles : bool
        Also compare the averages of two candidates.
    refit : bool
        Train the winner again on all cases of its study, instead of averaging its folds.
    final : bool
        Make a model of all cases by the same rules.
    recipe, epochs, minutes, tta, tolerance_mm, resample_channels, device, seed, deterministic, watch
        As for ``segpipe.run``; epochs and minutes are each training's, and minutes become a number of epochs.
    cluster : str, optional
        Address of a Dask scheduler, or ``slurm``; the recipe has to be given then.
    jobs : int, optional
        Most processes at a time (of SLURM: workers that are asked for).
    threads : int, optional
        Threads of a job; the processors are shared out unless given.
    retries : int
        How often a job is tried again after its worker was killed, or for a reason that segpipe does not state.
    believe : callable
        Shown the groups that a pattern makes, before any work; says whether they are right.

    Raises
    ------
    CrossvalError
        If there are too few groups, a group would be on two sides, or the workspace holds another cross-validation.
    TrainingInterrupted
        When a signal asked to stop.
    """
    from segpipe.crossvalidation.asked import N_INNER, candidates_asked, request_of, require_sound, settle, splits_asked
    from segpipe.crossvalidation.folder import CrossvalFolder
    from segpipe.crossvalidation.schema import CrossvalDesign
    from segpipe.execution.device import choose_runtime
    from segpipe.execution.locks import locked
    from segpipe.planning.recipe import load_recipe

    if cluster is not None and recipe is None:
        raise CrossvalError(
            f"--cluster {cluster}: which recipe suits is the workers' matter, not this machine's; give --recipe default for GPUs, or cpu"
        )
    workspace = workspace_of(dataset, work)
    folder = CrossvalFolder(workspace)
    with locked(folder.root, wait=False):
        with alone_in(workspace, watch):
            measured = fingerprint(dataset, workspace, resample_channels=resample_channels, jobs=jobs, watch=watch)
        matched = _matched(folder)
        listed, space = candidates_asked(candidates, trials, measured)
        FoldSettings(epochs=epochs, minutes=minutes)
        design = CrossvalDesign(
            software=__version__,
            dataset_name=measured.dataset_name,
            recipe=load_recipe(recipe or recipe_for(choose_runtime(device))),
            candidates=listed,
            space=space,
            n_trials=trials,
            nested=nested,
            inner_folds=(inner_folds or N_INNER) if nested else 0,
            refit=refit,
            final=final,
            ensembles=ensembles,
            epochs=epochs,
            minutes=minutes,
            tta=tta,
            tolerance_mm=tolerance_mm,
            deterministic=deterministic,
            seed=seed,
        )
        require_sound(design)
        request = request_of(
            matched, measured, group_by, stratify_by,
            n_folds=folds, n_inner=inner_folds, n_repeats=repeats, seed=seed, nested=nested, final=final,
        )  # fmt: skip
        divided = splits_asked(request, matched, leave_out, test_set, splits, n_folds=folds)
        if not folder.design.is_file():
            _tell_groups(matched, request, group_by, believe, watch)
        settle(folder, design, divided)
        _run(folder, design, divided, measured, device, cluster, jobs, threads, retries, watch)
        return _finish(folder, design, divided, device)


def crossval_status(work: PathLike) -> Crossvalidated:
    """Where the cross-validation of a workspace stands; nothing is begun, and no case is looked at.

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
    if not folder.splits.is_file():
        raise CrossvalError(f"{folder.root}: holds no cross-validation; begin one with `segpipe crossval DATASET`")
    design, splits = CrossvalDesign.read(folder.design), CrossvalSplits.read(folder.splits)
    found = standings(_graph(folder, design, splits, "auto", None), Journal(folder.journal))
    if not is_locked(folder.root):
        # Whoever ran them was killed.
        for standing in found.values():
            standing.state = "waiting" if standing.state == "running" else standing.state
    result = None
    with suppress(ArtefactError):
        result = CrossvalResult.read(folder.result)
    return Crossvalidated(
        folder, found, result, folder.model if folder.model.is_file() else None, {} if result is None else _lost(result)
    )


# The design ----------------------------------------------------------------------------------------------------------------------


def _matched(folder: CrossvalFolder) -> Dataset:
    from segpipe.dataset.schema import Dataset

    return Dataset.read(folder.workspace.dataset)


def _tell_groups(
    matched: Dataset,
    request: Request,
    group_by: str | None,
    believe: Callable[[list[tuple[str, str]]], bool],
    watch: Watch,
) -> None:
    """Say which cases belong together; where a pattern says so, it has to be believed first."""
    from segpipe.crossvalidation.groups import BY_CASE, describe_groups, is_pattern, looks_grouped

    groups = dict(request.groups)
    watch.note(f"{len(groups)} usable cases in {len(set(groups.values()))} groups, by {request.grouped_by}")
    if is_pattern(matched, group_by) and not believe(describe_groups(groups)):
        raise CrossvalError(
            f"--group-by {group_by}: these groups were not confirmed; correct the pattern, or confirm them with --yes"
        )
    hint = looks_grouped(list(groups)) if request.grouped_by == BY_CASE and group_by is None else None
    if hint is not None:
        watch.note(hint)


# The jobs ------------------------------------------------------------------------------------------------------------------------


def _graph(
    folder: CrossvalFolder, design: CrossvalDesign, splits: CrossvalSplits, device: str, threads: int | None
) -> list[Job]:
    from segpipe.crossvalidation.design import plan_study
    from segpipe.execution.graph import Job
    from segpipe.workflows.crossval.perform import perform
    from segpipe.workflows.crossval.work import Task

    jobs: list[Job] = []
    identity = design.digest() + splits.digest()
    for study in splits.studies:
        place = folder.study(study.name)

        def make(
            kind: str,
            *,
            candidate: int | None = None,
            fold: int | None = None,
            configuration: str | None = None,
            needs: Sequence[str] = (),
            after: Sequence[str] = (),
            name: str = study.name,
            records: Callable[[str], Path] = place.job,
        ) -> str:
            root = folder.workspace.root.resolve()
            task = Task(kind, root, name, candidate, fold, configuration, device, threads)
            artefact = records(task.name) / "done.json"
            jobs.append(Job(task.id, perform, (task,), tuple(needs), tuple(after), artefact, identity))
            return task.id

        plan_study(design, study, make)
    return jobs


def _run(
    folder: CrossvalFolder,
    design: CrossvalDesign,
    splits: CrossvalSplits,
    measured: Fingerprint,
    device: str,
    cluster: str | None,
    jobs: int | None,
    threads: int | None,
    retries: int,
    watch: Watch,
) -> None:
    """Do what is not done.

    Raises
    ------
    TrainingInterrupted
        When a signal asked to stop.
    """
    from segpipe.crossvalidation.design import n_candidates
    from segpipe.execution.capacity import plan_workers
    from segpipe.execution.graph import Journal, run_graph
    from segpipe.execution.processes import open_executor
    from segpipe.execution.signals import stop_requests

    local = None
    if cluster is None:
        n_trainings = sum(len(study.inner) for study in splits.studies) * n_candidates(design)
        local = plan_workers(device, n_trainings, _job_bytes(design, measured), limit=jobs, threads=threads)
        where = f"{local.n_workers} process(es) of {local.threads} thread(s)"
        graph = _graph(folder, design, splits, local.device, local.threads)
    else:
        where, graph = cluster, _graph(folder, design, splits, device, threads)
    watch.note(f"{len(graph)} jobs of {len(splits.studies)} studies, on {where}; everything is in {folder.root}")
    environments = () if local is None else local.environments
    journal = Journal(folder.journal)
    try:
        with (
            stop_requests() as request,
            open_executor(
                cluster,
                len(environments) or jobs or 1,
                environments=environments,
                bytes_each=_job_bytes(design, measured),
            ) as executor,
        ):
            with watch.counting("cross-validating", len(graph)) as done:
                run_graph(
                    graph,
                    executor,
                    journal,
                    retries=retries,
                    stop=lambda: bool(request),
                    on_event=_teller(watch, done),
                    capacity=executor.capacity,
                )
            if request.signal_number is not None:
                raise TrainingInterrupted(
                    f"stopped by {request.name_of(request.signal_number)}; what is done is kept: the same command continues",
                    signal_number=request.signal_number,
                )
    finally:
        journal.close()


def _teller(watch: Watch, done: Callable[[str], None]) -> Callable[[JobEvent], None]:
    def tell(told: JobEvent) -> None:
        if told.standing.state in ("done", "failed", "blocked"):
            done(told.job.id)
        if told.standing.state == "failed":
            watch.note(f"{told.job.id}: {told.standing.reason}")

    return tell


def _job_bytes(design: CrossvalDesign, measured: Fingerprint) -> int:
    """Forecast of what a job holds at most: the program, a training step of the planned budget, and the largest case several times over."""
    voxels = max(case.shape[0] * case.shape[1] * case.shape[2] for case in measured.cases)
    copies = 4 * (len(measured.channel_names) + 2)
    return int(_PROGRAM_BYTES + 2e9 * design.recipe.planner.budget_gb + 4 * copies * voxels)


# The result ----------------------------------------------------------------------------------------------------------------------


def _finish(folder: CrossvalFolder, design: CrossvalDesign, splits: CrossvalSplits, device: str) -> Crossvalidated:
    from segpipe.execution.graph import Journal, standings
    from segpipe.reporting.crossval import bring_together

    found = standings(_graph(folder, design, splits, device, None), Journal(folder.journal))
    result, model = bring_together(folder, design, splits, found)
    if result is None:
        lost = {job: s.reason for job, s in found.items() if s.state in ("failed", "blocked")}
        return Crossvalidated(folder, found, None, model, lost or {"all cases": "none was scored"})
    return Crossvalidated(folder, found, result, model, _lost(result))


def _lost(result: CrossvalResult) -> dict[str, str]:
    return result.unfinished | dict(lost.told for lost in result.lost)
