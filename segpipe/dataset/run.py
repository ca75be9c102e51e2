"""The stage: match the files, hold every case against every rule."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from segpipe import jobs
from segpipe.dataset.check import check_case
from segpipe.dataset.match import largest_case_bytes, match_dataset
from segpipe.dataset.schema import Case, Dataset, Finding


@dataclass(frozen=True)
class CheckResult:
    """A dataset with everything that is wrong with it."""

    dataset: Dataset
    findings: tuple[Finding, ...]


def check(
    dataset: Path | str, *, jobs_limit: int | None = None, on_case: Callable[[str], None] | None = None
) -> CheckResult:
    """Check every case of a dataset; nothing is written.

    Parameters
    ----------
    dataset : Path or str
        Folder or manifest.
    jobs_limit : int, optional
        Most worker processes.
    on_case : callable, optional
        Told each case id when it is done.

    Raises
    ------
    DatasetError
        If the folder is not a dataset.
    """
    matched = match_dataset(Path(dataset))
    findings = list(matched.findings)
    rules = partial(_findings, channel_names=matched.channel_names, declared=matched.labels)
    peak = largest_case_bytes(matched) * 5
    for outcome in jobs.map_cases(rules, matched.cases, limit=jobs_limit, bytes_each=peak):
        findings.extend(outcome.value or ())
        if outcome.failure:
            findings.append(
                Finding(case=outcome.item.id, severity="error", rule="check failed", message=outcome.failure)
            )
        if on_case:
            on_case(outcome.item.id)
    return CheckResult(matched, tuple(sorted(findings, key=lambda f: f.case)))


def _findings(case: Case, channel_names: tuple[str, ...], declared: dict[str, int] | None) -> tuple[Finding, ...]:
    return check_case(case, channel_names, declared).findings
