"""Commands that make models small and hold models against each other: distill, compare."""

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
    JobsOption,
    JsonOption,
    MinutesOption,
    QuietOption,
    ResumeOption,
    SeedOption,
    ToleranceOption,
    TtaOption,
    WorkOption,
)

if TYPE_CHECKING:
    from segpipe.evaluation.comparison import Comparison


def distill(
    dataset: DatasetArg,
    teacher: Annotated[
        list[Path] | None,
        typer.Option(
            "--teacher",
            "-t",
            metavar="MODEL",
            help="model.segpipe, the folder that holds it, or nnU-Net's folder of a trained model; "
            "give it again to average the probabilities of several.",
            show_default=False,
        ),
    ] = None,
    student: Annotated[
        list[str] | None,
        typer.Option(
            "--student",
            "-s",
            metavar="width=F|NAME[:key=value,...]",
            help="The plan's own U-Net at another width (width=0.25,norm=batch), or a network of `segpipe networks`; "
            "given again, each is taught by the one before.  [default: width=0.25]",
            show_default=False,
        ),
    ] = None,
    kd: Annotated[
        list[str] | None,
        typer.Option(
            "--kd",
            metavar="NAME[:key=value,...]",
            help="A term, such as voxel:temperature=2 or channel:weight=3, instead of the recipe's; give it again for more.",
            show_default=False,
        ),
    ] = None,
    recipe: Annotated[
        str, typer.Option("--recipe", help="Terms by name: distill, distill_structured, or a TOML file.")
    ] = "distill",
    name: Annotated[str, typer.Option("--name", help="Under which the student is kept.")] = "distilled",
    configuration: Annotated[
        str | None,
        typer.Option(
            "--configuration", "-c", help="2d, 3d_fullres or 3d_lowres.  [default: the teacher's]", show_default=False
        ),
    ] = None,
    fold: Annotated[str, typer.Option("--fold", help="Fold to hold out (0, 1, ...), or all: hold out nothing.")] = "0",
    teacher_fold: Annotated[
        list[str] | None,
        typer.Option(
            "--teacher-fold",
            help="Fold of the teachers; give it again for more.  [default: --fold where a teacher has it, else all]",
            show_default=False,
        ),
    ] = None,
    teacher_tta: Annotated[
        bool, typer.Option("--teacher-tta/--no-teacher-tta", help="Average soft labels over mirrored images.")
    ] = False,
    soft_labels: Annotated[
        bool | None,
        typer.Option(
            "--soft-labels/--no-soft-labels",
            help="Keep the teachers' probabilities on disk, or let them look at every patch.  "
            "[default: kept where they have to be, and on a CPU]",
            show_default=False,
        ),
    ] = None,
    unlabelled: Annotated[
        Path | None,
        typer.Option(
            "--unlabelled",
            metavar="IMAGES",
            help="Folder or manifest of images that nobody labelled; the teachers' probabilities teach on them.",
            show_default=False,
        ),
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Begin with fresh weights even where the teacher's fit.")
    ] = False,
    baseline: Annotated[
        bool, typer.Option("--baseline", help="Also train the student without a teacher, and compare.")
    ] = False,
    compare_models: Annotated[
        bool, typer.Option("--compare/--no-compare", help="Measure teacher and student at the end.")
    ] = True,
    minutes: MinutesOption = None,
    epochs: EpochsOption = None,
    resume: ResumeOption = False,
    tta: TtaOption = True,
    tolerance_mm: ToleranceOption = 1.0,
    work: WorkOption = None,
    device: DeviceOption = "auto",
    cluster: ClusterOption = None,
    jobs: JobsOption = None,
    seed: SeedOption = 0,
    deterministic: DeterministicOption = False,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Train a small network that a large one teaches, and show what it keeps."""
    from segpipe.cli.display import as_plain, out, show_failures, show_json, show_scores, watch
    from segpipe.workflows.distill import command

    done = command.distill(
        dataset,
        teacher=tuple(teacher or ()),
        student=tuple(student or (command.DEFAULT_STUDENT,)),
        kd=tuple(kd or ()),
        recipe=recipe,
        name=name,
        configuration=configuration,
        fold=int(fold) if fold.isdigit() else fold,
        teacher_folds=tuple(teacher_fold or ()),
        teacher_tta=teacher_tta,
        soft_labels=soft_labels,
        unlabelled=unlabelled,
        fresh=fresh,
        baseline=baseline,
        compare=compare_models,
        work=work,
        epochs=epochs,
        minutes=minutes,
        device=device,
        cluster=cluster,
        jobs=jobs,
        seed=seed,
        deterministic=deterministic,
        tta=tta,
        tolerance_mm=tolerance_mm,
        resume=resume,
        watch=watch(quiet=quiet or as_json),
    )
    last = done.students[-1]
    if as_json:
        show_json(
            {
                "models": [str(s.model) for s in done.students],
                "alone": None if done.alone is None else str(done.alone.model),
                "training": as_plain(last.record),
                "evaluation": None if last.held_out is None else as_plain(last.held_out.evaluation),
                "comparison": None if done.comparison is None else as_plain(done.comparison),
                "failed": done.failed,
            }
        )
    else:
        if done.comparison is not None:
            show_comparison(done.comparison)
        elif last.held_out is not None:
            show_scores(last.held_out.evaluation)
        places = {"model": last.model} | (
            {} if done.comparison_folder is None else {"comparison": done.comparison_folder}
        )
        for what, path in places.items():
            out().print(f"{what:12} {path}", markup=False, soft_wrap=True)
        show_failures("Cases that were lost", done.failed)
    if done.failed:
        raise typer.Exit(FAILED_CASES)


def compare(
    models: Annotated[
        list[Path],
        typer.Argument(
            metavar="MODEL...",
            help="model.segpipe, the folder that holds it, or nnU-Net's folder; the first is what the others are held against.",
            show_default=False,
        ),
    ],
    dataset: Annotated[
        Path, typer.Option("--dataset", help="Folder or manifest with the cases and their labels.", show_default=False)
    ],
    fold: Annotated[
        str,
        typer.Option(
            "--fold", help="The cases that this fold held out; all: every case, which no model may have seen."
        ),
    ] = "0",
    output: Annotated[
        Path | None,
        typer.Option("--output", help="Folder.  [default: comparisons/ of the workspace]", show_default=False),
    ] = None,
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, help="Of the CPU.  [default: all]", show_default=False)
    ] = None,
    tta: TtaOption = True,
    tolerance_mm: ToleranceOption = 1.0,
    work: WorkOption = None,
    device: DeviceOption = "auto",
    jobs: JobsOption = None,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Hold models against each other: weights, work, time, memory, scores, and whether they differ by more than chance."""
    from segpipe.cli.display import as_plain, show_failures, show_json, watch
    from segpipe.workflows.compare import command

    found = command.compare(
        models,
        dataset=dataset,
        work=work,
        fold=int(fold) if fold.isdigit() else fold,
        output=output,
        device=device,
        tta=tta,
        tolerance_mm=tolerance_mm,
        threads=threads,
        jobs=jobs,
        watch=watch(quiet=quiet or as_json),
    )
    failed = {f"{name}: {case}": why for name, s in found.scores.items() for case, why in s.failed.items()}
    if as_json:
        show_json(as_plain(found))
    else:
        show_comparison(found)
        show_failures("Cases without a score", failed)
    if failed:
        raise typer.Exit(FAILED_CASES)


def show_comparison(found: "Comparison") -> None:
    """Print what models take and keep, and their differences."""
    from segpipe.cli.display import out, table
    from segpipe.reporting.comparison import cost_rows, difference_rows

    for title, (columns, rows) in (
        (f"{found.dataset}, {len(found.cases)} cases", cost_rows(found)),
        ("Paired differences", difference_rows(found, labels=False)),
    ):
        out().print(table(title, columns, rows, right=tuple(range(1, len(columns)))))
