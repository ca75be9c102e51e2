"""The stage: match the files, hold every case against every rule."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from segpipe.core.workspace import Workspace
from segpipe.dataset.check import Expectations
from segpipe.dataset.match import match_again, reading_bytes
from segpipe.dataset.schema import Case, Dataset, Finding
from segpipe.dataset.store import read_case
from segpipe.execution import processes
from segpipe.execution.processes import Workers


@dataclass(frozen=True)
class CheckResult:
    """A dataset with everything that is wrong with it."""

    dataset: Dataset
    findings: tuple[Finding, ...]


def check(
    dataset: Path | str,
    workspace: Workspace,
    *,
    resample_channels: bool | None = None,
    workers: Workers = None,
    on_case: Callable[[str], None] | None = None,
) -> CheckResult:
    """Check every case of a dataset; the decoded cases are kept for the later stages.

    Parameters
    ----------
    dataset : Path or str
        Folder or manifest.
    workspace : Workspace
        Where decoded cases are kept.
    resample_channels : bool, optional
        Bring channels on other grids onto the first one's; as the last time unless given.
    workers : int or executor, optional
        Most worker processes, or whose.
    on_case : callable, optional
        Receives each case id when the case is done.

    Raises
    ------
    DatasetError
        If the folder is not a dataset.
    """
    matched = match_again(Path(dataset), workspace, resample_channels)
    findings = list(matched.findings)
    rules = partial(_findings, expected=Expectations.of(matched), workspace=workspace)
    for outcome in processes.map_cases(rules, matched.cases, workers=workers, bytes_each=reading_bytes(matched)):
        findings.extend(outcome.value or ())
        if outcome.failure:
            findings.append(
                Finding(case=outcome.item.id, severity="error", rule="check failed", message=outcome.failure)
            )
        if on_case:
            on_case(outcome.item.id)
    return CheckResult(matched, tuple(sorted(findings, key=lambda f: f.case)))


def _findings(case: Case, expected: Expectations, workspace: Workspace) -> tuple[Finding, ...]:
    return read_case(case, expected, workspace.case(case.id)).record.findings
