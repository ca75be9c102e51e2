"""`segpipe check`: check every case of a dataset."""

from __future__ import annotations

import re
from dataclasses import asdict

from segpipe.core.progress import SILENT, Watch
from segpipe.core.text import Table
from segpipe.dataset.run import CheckResult
from segpipe.dataset.run import check as stage
from segpipe.dataset.schema import Finding
from segpipe.workflows.options import CheckOptions
from segpipe.workflows.page import Page, plain
from segpipe.workflows.project import Project

_MOST_LABELS = 40
"""Label values that are listed; of more, the rest is counted."""
_WARNING = "warning: "
_FILE = re.compile(r"^\S+\.\w+: ")


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
    rows += [["warning" if note.startswith(_WARNING) else "note", note.removeprefix(_WARNING)] for note in result.notes]
    wrong: str | Table = f"nothing wrong with {len(found.cases)} case(s)"
    if findings:
        wrong = Table(f"{len(findings)} finding(s)", ["case", "", "rule", "what"], _together(findings))
    about: list[str | Table] = [Table(f"{found.name}: what was matched", ["", ""], rows)]
    if result.labels:
        columns = ["value", "label", "cases", "voxels"]
        values = [[str(v.value), v.name, str(v.n_cases), str(v.n_voxels)] for v in result.labels[:_MOST_LABELS]]
        left = len(result.labels) - _MOST_LABELS
        values += [["...", f"{left} more", "", ""]] if left > 0 else []
        about.append(Table("Label values in usable cases", columns, values, (0, 2, 3)))
    passed_over = ["\n".join(found.passed_over)] if found.passed_over else []
    return Page(
        {
            "dataset": plain(found),
            "findings": [plain(f) for f in findings],
            "labels": [asdict(v) for v in result.labels],
            "notes": list(result.notes),
        },
        [*about, *passed_over, wrong],
        exit_code=int(any(f.severity != "note" for f in findings) or any(g.loses_a_case for g in found.given)),
    )


def _together(findings: tuple[Finding, ...]) -> list[list[str]]:
    """Return rows of a table; findings of one rule that say the same of several cases are one row."""
    alike: dict[tuple[str, str, str], list[Finding]] = {}
    for f in findings:
        alike.setdefault((f.severity, f.rule, _kind_of(f)), []).append(f)
    return [[_cases_of(found), found[0].severity, found[0].rule, found[0].message] for found in alike.values()]


def _kind_of(finding: Finding) -> str:
    """Return what two findings share that say the same: of notes, the words without names of files and numbers."""
    if finding.severity != "note":
        return finding.message
    return re.sub(r"[-+]?\d+(\.\d+)?(e[-+]?\d+)?", "#", _FILE.sub("", finding.message))


def _cases_of(findings: list[Finding]) -> str:
    cases = list(dict.fromkeys(f.case for f in findings))
    if len(cases) == 1:
        return cases[0]
    return f"{len(cases)} cases: {', '.join(cases[:3])}{', ...' * (len(cases) > 3)}"
