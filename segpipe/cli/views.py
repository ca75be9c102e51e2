"""What each command shows: its result as JSON, or as text and tables, and what was lost."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from importlib import import_module
from typing import TYPE_CHECKING, Any

import typer

from segpipe.cli.display import as_plain, err, failures, out, scores, show_json, table, watch
from segpipe.core.text import shown
from segpipe.errors import NetworkError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from segpipe.cli.translate import CrossvalDisplay, Display
    from segpipe.workflows.options import Options

FAILED_CASES = 3
"""Exit code of a batch that finished with failed cases."""


@dataclass
class Page:
    """What a command shows."""

    json: Callable[[], Any]
    parts: Callable[[], list[RenderableType]]
    failed: dict[str, str] = field(default_factory=dict)
    lost: str = "Cases that were lost"
    """Title of the table of what failed."""
    exit_code: int = 0
    """Where nothing failed."""


def show(name: str, options: Options, display: Display) -> None:
    """Run a command's workflow and show what it made."""
    result = (_crossval if name == "crossval" else _called)(name, options, display)
    page: Page = globals()[f"{name}_page"](result, options, display)
    if display.as_json:
        show_json(page.json())
    else:
        for part in (*page.parts(), *failures(page.lost, page.failed)):
            plain = isinstance(part, str)
            out().print(part, markup=not plain, soft_wrap=plain)
    if page.failed or page.exit_code:
        raise typer.Exit(FAILED_CASES if page.failed and not page.exit_code else page.exit_code)


def _called(name: str, options: Options, display: Display) -> Any:
    module = import_module(f"segpipe.workflows.{ {'import': 'import_'}.get(name, name) }")
    if hasattr(module, "__path__"):
        module = import_module(f"{module.__name__}.command")
    return getattr(module, {"import": "import_"}.get(name, name))(
        options, watch(quiet=display.quiet or display.as_json)
    )


def _crossval(name: str, options: Any, display: Any) -> Any:
    if not display.status:
        return _called(name, replace(options, believe=lambda rows: _believed(rows, yes=display.yes)), display)
    from segpipe.workflows.crossval.command import crossval_status
    from segpipe.workflows.project import workspace_of

    return crossval_status(workspace_of(options.dataset, options.work).root)


def _believed(rows: list[tuple[str, str]], *, yes: bool) -> bool:
    """Show groups, and ask whether they are right where somebody can answer."""
    err().print(table("Groups by this pattern", ["group", "cases"], [list(row) for row in rows]))
    return yes or (sys.stdin.isatty() and typer.confirm("Are these the patients?", err=True))


def _places(places: dict[str, Any]) -> list[RenderableType]:
    return [f"{name:12} {path}" for name, path in places.items()]


def _texts(values: dict[str, Any]) -> dict[str, str]:
    return {name: str(value) for name, value in values.items()}


def run_page(done: Any, _options: Any, _display: Any) -> Page:
    """Scores, and where everything is."""
    places = {
        "model": done.model, "predictions": done.predictions, "scores": done.evaluation_file, "report": done.report,
    }  # fmt: skip
    plain = {"evaluation": done.evaluation, "training": done.record}
    return Page(
        lambda: {k: as_plain(v) for k, v in plain.items()} | {"failed": done.failed} | _texts(places),
        lambda: [*scores(done.evaluation), *_places(places)],
        done.failed,
    )


def train_page(done: Any, _options: Any, _display: Any) -> Page:
    """How long it took, scores, and where everything is."""
    record, held_out = done.record, done.held_out
    places = {"model": done.model, "log": done.folder.log, "curves": done.folder.curves}
    if held_out is not None:
        places |= {"predictions": held_out.predictions, "scores": held_out.evaluation_file}
        places |= {f"example {n}": picture for n, picture in enumerate(held_out.pictures, start=1)}
    early = f"; stopped early, best epoch {record.best_epoch}" if record.stopped_early else ""
    took = (
        f"{record.iterations} iterations in {record.elapsed_s / 60:.1f} min{early}; "
        f"{record.data_wait_share:.1%} of the time waiting for data"
    )
    scored = None if held_out is None else held_out.evaluation
    return Page(
        lambda: {"training": as_plain(record), "failed": done.failed, "evaluation": as_plain(scored)} | _texts(places),
        lambda: [took, *(scores(scored) if scored else []), *_places(places)],
        done.failed,
    )


def check_page(result: Any, _options: Any, _display: Any) -> Page:
    """What was matched, and what is wrong with it."""
    found, findings = result.dataset, result.findings

    def parts() -> list[RenderableType]:
        rows = [
            ["layout", found.layout],
            ["cases", str(len(found.cases))],
            ["channels", ", ".join(found.channel_names)],
            ["labels", "found in the files" if found.labels is None else found.labels.describe()],
        ]
        rows += [
            [f"case {c.id}", f"{', '.join(i.path.name for i in c.images)} + {c.label.path.name if c.label else '-'}"]
            for c in found.cases[:3]
        ]
        matched = table(f"{found.name}: what was matched", ["", ""], rows)
        if not findings:
            return [matched, f"nothing wrong with {len(found.cases)} case(s)"]
        return [
            matched,
            table(f"{len(findings)} finding(s)", ["case", "", "rule", "what"], _together(findings)),
        ]

    wrong = any(f.severity != "note" for f in findings)
    return Page(
        lambda: {"dataset": as_plain(found), "findings": [as_plain(f) for f in findings]}, parts, exit_code=int(wrong)
    )


def _together(findings: tuple[Any, ...]) -> list[list[str]]:
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


def plan_page(done: Any, _options: Any, display: Any) -> Page:
    """What was measured, what was chosen, and why."""
    from segpipe.cli.plan_page import plan_parts

    left_out = done.measured.left_out
    return Page(
        lambda: as_plain(done.plan), lambda: plan_parts(done, explain=display.explain), left_out, "Cases left out"
    )


def preprocess_page(done: Any, _options: Any, _display: Any) -> Page:
    """How many cases were prepared."""
    return Page(
        lambda: as_plain(done.index) | {"failed": done.failed},
        lambda: [f"{len(done.index.cases)} case(s) prepared in {done.folder}"],
        done.failed,
        "Cases left out",
    )


def crossval_page(done: Any, _options: Any, display: CrossvalDisplay) -> Page:
    """Where it stands, or what was measured."""
    if display.status:
        return _status_page(done)
    folder, result = done.folder, done.result
    places = {
        "report": folder.page, "table": folder.table, "methods": folder.methods, "result": folder.result, "splits": folder.splits,
    }  # fmt: skip
    places = {name: path for name, path in places.items() if path.is_file()}

    def parts() -> list[RenderableType]:
        model = [] if done.model is None else [f"model: segpipe predict IMAGES OUTPUT --model {done.model}"]
        measured = [] if result is None else _measured(result)
        return [*failures("Lost", done.failed), *measured, *(f"{n}: {path}" for n, path in places.items()), *model]

    page = Page(
        lambda: {"result": as_plain(result), "model": done.model, "failed": done.failed, **_texts(places)}, parts
    )
    page.exit_code = FAILED_CASES if done.failed else 0
    return page


def _measured(result: Any) -> list[RenderableType]:
    rows = []
    for label, found in result.scores.items():
        dice = found["dice"]
        interval = f"{shown(dice.low)} to {shown(dice.high)}"
        others = [shown(found["nsd"].mean), shown(found["hd95_mm"].mean, 2), shown(dice.between_folds_sd)]
        rows.append([label, shown(dice.mean), interval, shown(dice.median), *others, str(dice.n_patients)])
    kind = "Nested cross-validation" if result.nested else "Not nested, so optimistic"
    columns = ["label", "Dice", "95 % CI", "median", f"NSD {result.tolerance_mm:g} mm", "HD95 mm"]
    columns += ["SD between folds", "patients"]
    title = f"{kind}: {result.n_cases} case(s), each by a model that was made without it"
    chosen = [[study, " + ".join(winner)] for study, winner in result.chosen.items()]
    return [
        table(title, columns, rows, right=tuple(range(1, 8))),
        table("Chosen", ["study", "candidate"], chosen),
    ]


def _status_page(standing: Any) -> Page:
    from segpipe.workflows.crossval.command import STATES, by_study

    counted, total = by_study(standing.standings)
    lost = {job: s.reason for job, s in standing.standings.items() if s.state in ("failed", "blocked")}
    running = [job for job, s in standing.standings.items() if s.state == "running"]

    def parts() -> list[RenderableType]:
        rows = [[name, *(str(found[state]) for state in STATES)] for name, found in (*counted.items(), ("all", total))]
        title = f"Jobs of {standing.folder.root}"
        shown_parts: list[RenderableType] = [table(title, ["study", *STATES], rows, right=(1, 2, 3, 4, 5))]
        if running:
            shown_parts.append(f"running: {', '.join(running)}")
        if lost:
            shown_parts.append(table("Lost", ["job", "reason"], [[job, reason] for job, reason in lost.items()]))
        return shown_parts

    plain = {"studies": counted, "running": running, "lost": lost}
    return Page(lambda: plain | {"result": as_plain(standing.result)}, parts)


def distill_page(done: Any, _options: Any, _display: Any) -> Page:
    """What teacher and student take and keep."""
    last = done.students[-1]
    scored = None if last.held_out is None else last.held_out.evaluation

    def parts() -> list[RenderableType]:
        compared = [] if done.comparison is None else _compared(done.comparison)
        own = scores(scored) if scored is not None and done.comparison is None else []
        where = {} if done.comparison_folder is None else {"comparison": done.comparison_folder}
        return [*compared, *own, *_places({"model": last.model} | where)]

    return Page(
        lambda: {
            "models": [str(s.model) for s in done.students],
            "alone": None if done.alone is None else str(done.alone.model),
            "training": as_plain(last.record),
            "evaluation": as_plain(scored),
            "comparison": as_plain(done.comparison),
            "failed": done.failed,
        },
        parts,
        done.failed,
    )


def compare_page(found: Any, _options: Any, _display: Any) -> Page:
    """What models take and keep, and their differences."""
    failed = {f"{name}: {case}": why for name, s in found.scores.items() for case, why in s.failed.items()}
    return Page(lambda: as_plain(found), lambda: _compared(found), failed, "Cases without a score")


def _compared(found: Any) -> list[RenderableType]:
    from segpipe.workflows.compare.command import tables

    return [table(title, columns, rows, right=tuple(range(1, len(columns)))) for title, columns, rows in tables(found)]


def predict_page(rows: Any, options: Any, _display: Any) -> Page:
    """How many cases were predicted, and which are doubtful."""
    failed = {row.case: row.reason or "" for row in rows if row.status == "failed"}
    doubtful = {row.case: "; ".join(row.doubts) for row in rows if row.doubts}
    done = f"{len(rows) - len(failed)} of {len(rows)} case(s) predicted, in {options.output}"
    lost = "Cases that failed"
    return Page(
        lambda: [as_plain(row) for row in rows],
        lambda: [done, *failures(lost, failed), *failures("Cases to look at", doubtful)],
        exit_code=FAILED_CASES if failed else 0,
    )


def postprocess_page(done: Any, options: Any, _display: Any) -> Page:
    """Rules that were chosen, or how much was changed."""
    chosen, changed = done.chosen, done.changed
    if chosen is None:
        text = f"{len(changed)} segmentation(s) written to {options.output}, {sum(n > 0 for n in changed.values())} of them changed"
        plain = {"changed_voxels": changed, "failed": done.failed}
        return Page(lambda: plain, lambda: [text], done.failed, "Cases that failed")

    def parts() -> list[RenderableType]:
        rows = [
            [t.rule.describe(), _mean(t.before), _mean(t.after), "yes" if t.chosen else ""]
            for t in chosen.trials
            if t.before != t.after
        ]
        words = "; ".join(r.describe() for r in chosen.rules) or "none: no rule helps without making a label worse"
        columns = ["rule", "mean Dice before", "after", "chosen"]
        tried = [table("Rules that change a Dice", columns, rows, right=(1, 2))] if rows else []
        return [*tried, f"rules: {words}"]

    return Page(lambda: {"chosen": as_plain(chosen), "failed": done.failed}, parts, done.failed, "Cases that failed")


def _mean(means: dict[str, float | None]) -> str:
    known = [m for m in means.values() if m is not None]
    return shown(sum(known) / len(known) if known else None, 4)


def import_page(facts: dict[str, str], _options: Any, _display: Any) -> Page:
    """What was read, in words."""
    return Page(lambda: facts, lambda: ["\n".join(f"{k:<14}{v}" for k, v in facts.items())])


export_page = import_page


def convert_page(series: Any, options: Any, _display: Any) -> Page:
    """Which series were written."""
    rows = [
        [s.output.name, "x".join(map(str, s.shape)), " x ".join(f"{v:.4g}" for v in s.spacing_mm)]
        for s in series
        if s.output and s.shape and s.spacing_mm
    ]
    title = f"{len(rows)} of {len(series)} series, in {options.output}"
    return Page(
        lambda: [as_plain(s) for s in series],
        lambda: [table(title, ["file", "shape (z, y, x)", "mm"], rows)],
        {s.series: s.reason for s in series if s.reason},
        "Series that were refused",
    )


def evaluate_page(result: Any, _options: Any, _display: Any) -> Page:
    """Scores per label."""
    return Page(lambda: as_plain(result), lambda: scores(result), result.failed, "Cases not scored")


def report_page(page: Any, _options: Any, _display: Any) -> Page:
    """Where the page is."""
    return Page(lambda: {"report": str(page)}, lambda: [str(page)])


def demo_page(folder: Any, options: Any, _display: Any) -> Page:
    """Where the dataset is, and what to do with it."""
    text = f"demo dataset in {folder}; try: segpipe run {options.folder} --minutes 1"
    return Page(lambda: {"folder": str(folder)}, lambda: [text])


def networks_page(costs: Any, options: Any, _display: Any) -> Page:
    """Networks, and what each costs."""
    from segpipe.workflows.networks import described

    def parts() -> list[RenderableType]:
        if options.dataset is not None:
            columns = [
                "network",
                "patch",
                "batch",
                "million parameters",
                "10^9 MACs a patch",
                "GB a step",
                "seconds a step",
            ]
            rows = [_cost_row(cost) for cost in costs]
            return [table(f"Networks for {options.dataset}", columns, rows, right=(2, 3, 4, 5))]
        wrong = [cost.problem for cost in costs if cost.problem]
        if wrong:
            raise NetworkError(wrong[0])
        about = [list(described(cost.network)) for cost in costs]
        title = "Networks, and what they may be asked for"
        return [
            table(title, ["network", "", "options"], about),
            "any other network of MONAI for segmentation: monai:CLASS",
        ]

    return Page(lambda: [asdict(cost) for cost in costs], parts)


def _cost_row(cost: Any) -> list[str]:
    def number(value: float | None, digits: int, unit: float = 1.0) -> str:
        return "" if value is None else f"{value / unit:.{digits}f}"

    return [
        cost.network,
        "x".join(map(str, cost.patch_size or ())),
        number(cost.batch_size, 0),
        number(cost.parameters, 2, 1e6),
        number(cost.macs, 1, 1e9),
        number(cost.memory_gb, 2),
        cost.problem or number(cost.step_s, 2),
    ]


def doctor_page(facts: dict[str, str], _options: Any, _display: Any) -> Page:
    """What this machine can do."""
    return Page(lambda: facts, lambda: [table("This machine", ["", ""], [[k, v] for k, v in facts.items()])])
