"""`segpipe check`: check every case of a dataset."""

from __future__ import annotations

from segpipe.core.progress import SILENT, Watch
from segpipe.core.text import Table
from segpipe.dataset.run import CheckResult
from segpipe.dataset.run import check as stage
from segpipe.dataset.schema import Finding
from segpipe.workflows.options import CheckOptions
from segpipe.workflows.page import Page, plain
from segpipe.workflows.project import Project


def check(options: CheckOptions, watch: Watch = SILENT) -> CheckResult:
    """Check every case of a dataset by every rule; the decoded cases are kept for the later stages."""
    project = Project.open(options, watch)
    with project.alone(), watch.counting("checking", None) as done:
        return stage(
            options.dataset, project.workspace,
            resample_channels=options.resample_channels, workers=project.workers, on_case=done,
        )  # fmt: skip


def page(result: CheckResult, _: CheckOptions) -> Page:
    """Show what was matched, and what is wrong with it."""
    found, findings = result.dataset, result.findings
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
    wrong: str | Table = f"nothing wrong with {len(found.cases)} case(s)"
    if findings:
        wrong = Table(f"{len(findings)} finding(s)", ["case", "", "rule", "what"], _together(findings))
    return Page(
        {"dataset": plain(found), "findings": [plain(f) for f in findings]},
        [Table(f"{found.name}: what was matched", ["", ""], rows), wrong],
        exit_code=int(any(f.severity != "note" for f in findings)),
    )


def _together(findings: tuple[Finding, ...]) -> list[list[str]]:
    """Return rows of a table; what is the same of several cases is one row."""
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
