"""The command that cross-validates: crossval."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from segpipe.cli.data_commands import FAILED_CASES
from segpipe.cli.options import (
    ClusterOption,
    DatasetArg,
    DeterministicOption,
    DeviceOption,
    EpochsOption,
    JsonOption,
    MinutesOption,
    QuietOption,
    RecipeOption,
    ResampleOption,
    SeedOption,
    ToleranceOption,
    TtaOption,
    WorkOption,
)

if TYPE_CHECKING:
    from segpipe.workflows.crossval.command import Crossvalidated


def crossval(
    dataset: DatasetArg,
    folds: Annotated[
        int | None,
        typer.Option("--folds", min=2, help="Outer folds, which measure.  [default: 5]", show_default=False),
    ] = None,
    inner_folds: Annotated[
        int | None,
        typer.Option(
            "--inner-folds",
            min=2,
            help="Folds of each outer training set, which choose.  [default: 3]",
            show_default=False,
        ),
    ] = None,
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="Divide the cases anew so many times.")] = 1,
    leave_out: Annotated[
        str | None,
        typer.Option(
            "--leave-out",
            metavar="COLUMN",
            help="An outer fold for each value of a column, such as site.",
            show_default=False,
        ),
    ] = None,
    test_set: Annotated[
        str | None,
        typer.Option(
            "--test-set",
            metavar="FILE|COLUMN=VALUE",
            help="One outer fold: a file with a case id a line, or a column's value.",
            show_default=False,
        ),
    ] = None,
    splits: Annotated[
        Path | None,
        typer.Option(
            "--splits", help="Outer folds of nnU-Net's splits_final.json, or of a splits.json.", show_default=False
        ),
    ] = None,
    group_by: Annotated[
        str | None,
        typer.Option(
            "--group-by",
            metavar="COLUMN|PATTERN",
            help="What keeps cases together: a manifest's column, or a pattern on case ids such as '^(.+)_'.  "
            "[default: patient, where there is that column]",
            show_default=False,
        ),
    ] = None,
    stratify_by: Annotated[
        list[str] | None,
        typer.Option(
            "--stratify-by",
            metavar="COLUMN",
            help="Spread a column evenly over folds; labels: their presence and volume. Give it again for more.",
        ),
    ] = None,
    nested: Annotated[
        bool,
        typer.Option(
            "--nested/--no-nested",
            help="Without nesting, one level of folds chooses and measures: scores are optimistic.",
        ),
    ] = True,
    candidates: Annotated[
        list[str] | None,
        typer.Option(
            "--candidates",
            metavar="CONFIGURATION[+NETWORK][@setting=value,...],...|FILE.toml",
            help="What is chosen among, parted by commas, or a file of alternatives.  [default: 2d,3d_fullres]",
            show_default=False,
        ),
    ] = None,
    trials: Annotated[
        int | None,
        typer.Option(
            "--trials",
            min=2,
            help="Search the file's alternatives by Optuna, with so many trials a study.",
            show_default=False,
        ),
    ] = None,
    ensembles: Annotated[
        bool, typer.Option("--ensembles/--no-ensembles", help="Also compare averages of two candidates.")
    ] = True,
    refit: Annotated[
        bool,
        typer.Option(
            "--refit/--no-refit", help="Train the winner again on all cases of its study; else its folds are averaged."
        ),
    ] = False,
    final: Annotated[
        bool, typer.Option("--final/--no-final", help="Make a model of all cases, by the same rules.")
    ] = True,
    recipe: RecipeOption = None,
    minutes: MinutesOption = None,
    epochs: EpochsOption = None,
    tta: TtaOption = True,
    tolerance_mm: ToleranceOption = 1.0,
    resample_channels: ResampleOption = None,
    cluster: ClusterOption = None,
    jobs: Annotated[
        int | None,
        typer.Option(
            "--jobs",
            min=1,
            help="Most jobs at a time.  [default: one a GPU, or what processors and memory allow]",
            show_default=False,
        ),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(
            "--threads",
            min=1,
            help="Threads of a job.  [default: the processors are shared out; on a cluster all that a worker may use]",
            show_default=False,
        ),
    ] = None,
    retries: Annotated[
        int, typer.Option("--retries", min=0, help="How often a job is tried again whose worker was killed.")
    ] = 1,
    device: DeviceOption = "auto",
    seed: SeedOption = 0,
    deterministic: DeterministicOption = False,
    work: WorkOption = None,
    status: Annotated[bool, typer.Option("--status", help="Only show where it stands.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Believe the groups that a pattern makes.")] = False,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Nested cross-validation: outer folds measure, inner folds choose. The same command continues what was interrupted."""
    from segpipe.cli.display import watch
    from segpipe.workflows.crossval import command
    from segpipe.workflows.project import workspace_of

    if status:
        _show_status(command.crossval_status(workspace_of(dataset, work).root), as_json=as_json)
        return
    done = command.crossval(
        dataset,
        work=work,
        folds=folds,
        repeats=repeats,
        leave_out=leave_out,
        test_set=test_set,
        splits=splits,
        group_by=group_by,
        stratify_by=tuple(stratify_by or ()),
        nested=nested,
        inner_folds=inner_folds,
        candidates=tuple(candidates or ()),
        trials=trials,
        ensembles=ensembles,
        refit=refit,
        final=final,
        recipe=recipe,
        epochs=epochs,
        minutes=minutes,
        tta=tta,
        tolerance_mm=tolerance_mm,
        resample_channels=resample_channels,
        device=device,
        cluster=cluster,
        jobs=jobs,
        threads=threads,
        retries=retries,
        seed=seed,
        deterministic=deterministic,
        believe=lambda rows: _believed(rows, yes=yes),
        watch=watch(quiet=quiet or as_json),
    )
    _show_result(done, as_json=as_json)
    if done.failed:
        raise typer.Exit(FAILED_CASES)


def _believed(rows: list[tuple[str, str]], *, yes: bool) -> bool:
    """Show groups, and ask whether they are right where somebody can answer."""
    import sys

    from segpipe.cli.display import err, table

    err().print(table("Groups by this pattern", ["group", "cases"], [list(row) for row in rows]))
    return yes or (sys.stdin.isatty() and typer.confirm("Are these the patients?", err=True))


def _show_status(standing: "Crossvalidated", *, as_json: bool) -> None:
    from segpipe.cli.display import as_plain, out, show_json, table
    from segpipe.execution.graph import STATES, counts

    studies: dict[str, list[str]] = {}
    for job in standing.standings:
        studies.setdefault(job.partition("/")[0], []).append(job)
    by_study = {name: counts(standing.standings[job] for job in jobs) for name, jobs in studies.items()}
    lost = {job: s.reason for job, s in standing.standings.items() if s.state in ("failed", "blocked")}
    running = [job for job, s in standing.standings.items() if s.state == "running"]
    if as_json:
        result = None if standing.result is None else as_plain(standing.result)
        show_json({"studies": by_study, "running": running, "lost": lost, "result": result})
        return
    total = counts(standing.standings.values())
    rows = [[name, *(str(found[state]) for state in STATES)] for name, found in by_study.items()]
    rows.append(["all", *(str(total[state]) for state in STATES)])
    out().print(table(f"Jobs of {standing.folder.root}", ["study", *STATES], rows, right=(1, 2, 3, 4, 5)))
    if running:
        out().print(f"running: {', '.join(running)}", markup=False)
    if lost:
        out().print(table("Lost", ["job", "reason"], [[job, reason] for job, reason in lost.items()]))


def _show_result(done: "Crossvalidated", *, as_json: bool) -> None:
    from segpipe.cli.display import as_plain, out, show_failures, show_json, table
    from segpipe.core.text import shown

    folder = done.folder
    places = {
        "report": folder.page, "table": folder.table, "methods": folder.methods, "result": folder.result, "splits": folder.splits,
    }  # fmt: skip
    if as_json:
        files = {name: str(path) for name, path in places.items() if path.is_file()}
        result = None if done.result is None else as_plain(done.result)
        show_json({"result": result, "model": done.model, "failed": done.failed, **files})
        return
    show_failures("Lost", done.failed)
    if done.result is not None:
        result = done.result
        rows = []
        for label, scores in result.scores.items():
            dice = scores["dice"]
            interval = f"{shown(dice.low)} to {shown(dice.high)}"
            others = [shown(scores["nsd"].mean), shown(scores["hd95_mm"].mean, 2), shown(dice.between_folds_sd)]
            rows.append([label, shown(dice.mean), interval, shown(dice.median), *others, str(dice.n_patients)])
        kind = "Nested cross-validation" if result.nested else "Not nested, so optimistic"
        columns = [
            "label",
            "Dice",
            "95 % CI",
            "median",
            f"NSD {result.tolerance_mm:g} mm",
            "HD95 mm",
            "SD between folds",
            "patients",
        ]
        out().print(
            table(
                f"{kind}: {result.n_cases} case(s), each by a model that was made without it",
                columns,
                rows,
                right=(1, 2, 3, 4, 5, 6, 7),
            )
        )
        chosen = [[study, " + ".join(winner)] for study, winner in result.chosen.items()]
        out().print(table("Chosen", ["study", "candidate"], chosen))
    for name, path in places.items():
        if path.is_file():
            out().print(f"{name}: {path}", markup=False)
    if done.model is not None:
        out().print(f"model: segpipe predict IMAGES OUTPUT --model {done.model}", markup=False)
