"""Commands that need no network: check, plan, preprocess, convert, evaluate, report, demo."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from segpipe.cli.options import (
    ClusterOption,
    ConfigurationOption,
    DatasetArg,
    JobsOption,
    JsonOption,
    QuietOption,
    ResampleOption,
    ToleranceOption,
    WorkOption,
)

if TYPE_CHECKING:
    from segpipe.dataset.schema import Finding

FAILED_CASES = 3
"""Exit code of a batch that finished with failed cases."""


def check(
    dataset: DatasetArg,
    resample_channels: ResampleOption = None,
    work: WorkOption = None,
    jobs: JobsOption = None,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Hold every case against every rule; exit 1 if anything is wrong. What was decoded is kept for the later stages."""
    from segpipe.cli.display import as_plain, out, show_json, table, watch
    from segpipe.workflows import check

    result = check.check(
        dataset, work=work, resample_channels=resample_channels, jobs=jobs, watch=watch(quiet=quiet or as_json)
    )
    found = result.dataset
    if as_json:
        show_json({"dataset": as_plain(found), "findings": [as_plain(f) for f in result.findings]})
    else:
        labels = "found in the files" if found.labels is None else found.labels.describe()
        rows = [
            ["layout", found.layout],
            ["cases", str(len(found.cases))],
            ["channels", ", ".join(found.channel_names)],
            ["labels", labels],
        ]
        examples = [
            [f"case {c.id}", f"{', '.join(i.path.name for i in c.images)} + {c.label.path.name if c.label else '-'}"]
            for c in found.cases[:3]
        ]
        out().print(table(f"{found.name}: what was matched", ["", ""], rows + examples))
        if result.findings:
            out().print(
                table(
                    f"{len(result.findings)} finding(s)",
                    ["case", "", "rule", "what"],
                    _together(result.findings),
                )
            )
        else:
            out().print(f"nothing wrong with {len(found.cases)} case(s)")
    if any(f.severity != "note" for f in result.findings):
        raise typer.Exit(1)


def _together(findings: tuple["Finding", ...]) -> list[list[str]]:
    """Rows of a table; what is the same of several cases is one row."""
    cases: dict[tuple[str, str, str], list[str]] = {}
    for f in findings:
        cases.setdefault((f.severity, f.rule, f.message), []).append(f.case)
    return [
        [
            found[0] if len(found) == 1 else f"{len(found)} cases: {', '.join(found[:3])}{', ...' * (len(found) > 3)}",
            *what,
        ]
        for what, found in cases.items()
    ]


def plan(
    dataset: DatasetArg,
    recipe: Annotated[
        str,
        typer.Option(
            "--recipe",
            help="Name of a recipe (default, resenc_m, resenc_l, resenc_xl, residual_m, residual_l, residual_xl, u2net, "
            "danet, mr_artefacts, cpu) or a TOML file.",
        ),
    ] = "default",
    budget_gb: Annotated[
        str | None,
        typer.Option(
            "--budget-gb",
            help="Device memory to plan for, or auto: what is free on the device.  [default: the recipe's]",
            show_default=False,
        ),
    ] = None,
    spacing: Annotated[
        tuple[float, float, float] | None,
        typer.Option(
            "--spacing", metavar="Z Y X", help="Target spacing in mm instead of the planned one.", show_default=False
        ),
    ] = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Show what each rule looked at and did, step by step.")
    ] = False,
    resample_channels: ResampleOption = None,
    work: WorkOption = None,
    jobs: JobsOption = None,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Measure the dataset and plan for it; writes fingerprint.json and plan.json."""
    from segpipe.cli.display import as_plain, show_failures, show_json, watch
    from segpipe.cli.plan_page import show_plan
    from segpipe.dataset.fingerprint.schema import Fingerprint
    from segpipe.workflows import plan
    from segpipe.workflows.project import workspace_of

    made = plan.plan(
        dataset,
        work=work,
        recipe=recipe,
        budget_gb=_budget(budget_gb),
        spacing_mm=spacing,
        resample_channels=resample_channels,
        jobs=jobs,
        watch=watch(quiet=quiet or as_json),
    )
    workspace = workspace_of(dataset, work)
    measured = Fingerprint.read(workspace.fingerprint)
    if as_json:
        show_json(as_plain(made))
    else:
        show_plan(measured, made, workspace, explain=explain)
        show_failures("Cases left out", measured.left_out)
    if measured.left_out:
        raise typer.Exit(FAILED_CASES)


def _budget(text: str | None) -> float | Literal["auto"] | None:
    if text is None:
        return None
    if text == "auto":
        return "auto"
    try:
        budget = float(text)
    except ValueError:
        budget = 0.0
    if not 0.1 <= budget < float("inf"):
        raise typer.BadParameter(f"{text!r}: expected a number of GB, at least 0.1, or auto", param_hint="--budget-gb")
    return budget


def preprocess(
    dataset: DatasetArg,
    configuration: ConfigurationOption = None,
    work: WorkOption = None,
    cluster: ClusterOption = None,
    jobs: JobsOption = None,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Prepare the arrays of one configuration; cases that are prepared already are kept."""
    from segpipe.cli.display import as_plain, out, show_failures, show_json, watch
    from segpipe.dataset.fingerprint.schema import Fingerprint
    from segpipe.workflows import preprocess
    from segpipe.workflows.project import workspace_of

    index = preprocess.preprocess(
        dataset,
        work=work,
        configuration=configuration,
        cluster=cluster,
        jobs=jobs,
        watch=watch(quiet=quiet or as_json),
    )
    workspace = workspace_of(dataset, work)
    left_out = Fingerprint.read(workspace.fingerprint).left_out | index.failed
    if as_json:
        show_json(as_plain(index) | {"failed": left_out})
    else:
        out().print(
            f"{len(index.cases)} case(s) prepared in {workspace.preprocessed(index.configuration)}", markup=False
        )
        show_failures("Cases left out", left_out)
    if left_out:
        raise typer.Exit(FAILED_CASES)


def convert(
    source: Annotated[
        Path, typer.Argument(metavar="DICOM", help="Folder of DICOM files, at any depth.", show_default=False)
    ],
    output: Annotated[Path, typer.Argument(metavar="OUTPUT", help="Folder for the NIfTI files.", show_default=False)],
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write every regular DICOM series as NIfTI, with a sidecar; the others are refused with the reason (exit 3)."""
    from segpipe.cli.display import as_plain, out, show_failures, show_json, table, watch
    from segpipe.workflows import convert

    series = convert.convert(source, output, watch=watch(quiet=quiet or as_json))
    failed = {s.series: s.reason for s in series if s.reason}
    if as_json:
        show_json([as_plain(s) for s in series])
    else:
        rows = [
            [s.output.name, "x".join(map(str, s.shape)), " x ".join(f"{v:.4g}" for v in s.spacing_mm)]
            for s in series
            if s.output and s.shape and s.spacing_mm
        ]
        out().print(table(f"{len(rows)} of {len(series)} series, in {output}", ["file", "shape (z, y, x)", "mm"], rows))
        show_failures("Series that were refused", failed)
    if failed:
        raise typer.Exit(FAILED_CASES)


def evaluate(
    predictions: Annotated[Path, typer.Argument(help="Folder of segmentations, or one file.", show_default=False)],
    references: Annotated[
        Path, typer.Argument(help="Folder of references of the same names, or one file.", show_default=False)
    ],
    labels: Annotated[
        Path | None,
        typer.Option(
            "--labels",
            help="A dataset.json with names, regions and the ignored value.  [default: every value but 0]",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="JSON file to write.", show_default=False)
    ] = None,
    tolerance_mm: ToleranceOption = 1.0,
    jobs: JobsOption = None,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Score segmentations: Dice, normalised surface Dice, HD95 and volumes, per label and overall."""
    from segpipe.cli.display import as_plain, show_failures, show_json, show_scores, watch
    from segpipe.workflows import evaluate

    result = evaluate.evaluate(
        predictions,
        references,
        labels=labels,
        output=output,
        tolerance_mm=tolerance_mm,
        jobs=jobs,
        watch=watch(quiet=quiet or as_json),
    )
    if as_json:
        show_json(as_plain(result))
    else:
        show_scores(result)
        show_failures("Cases not scored", result.failed)
    if result.failed:
        raise typer.Exit(FAILED_CASES)


def report(
    work: Annotated[
        Path, typer.Argument(metavar="WORK", help="Workspace in which `segpipe run` finished.", show_default=False)
    ],
) -> None:
    """Write the report page of a workspace again."""
    from segpipe.workflows import report

    typer.echo(report.report(work))


def demo(folder: Annotated[Path, typer.Argument(metavar="DIR", help="New folder.", show_default=False)]) -> None:
    """Write the demo dataset: drawn organs in 12 small volumes."""
    from segpipe.workflows import demo

    typer.echo(f"demo dataset in {demo.demo(folder)}; try: segpipe run {folder} --minutes 1")
