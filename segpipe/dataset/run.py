"""The stage: match the files, hold every case against every rule."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from segpipe import jobs
from segpipe.dataset.check import check_case
from segpipe.dataset.match import match_dataset
from segpipe.dataset.schema import Case, Dataset, Finding
from segpipe.errors import UnreadableFileError
from segpipe.io.formats import read_header


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
    workers = jobs.worker_count(jobs_limit, len(matched.cases), largest_case_bytes(matched) * 3)
    for outcome in jobs.map_cases(rules, matched.cases, workers=workers):
        findings.extend(outcome.value or ())
        if outcome.failure:
            findings.append(
                Finding(case=outcome.item.id, severity="error", rule="check failed", message=outcome.failure)
            )
        if on_case:
            on_case(outcome.item.id)
    return CheckResult(matched, tuple(sorted(findings, key=lambda f: f.case)))


def largest_case_bytes(dataset: Dataset) -> int:
    """float32 bytes of the largest case, from the headers."""
    largest = 0
    for case in dataset.cases:
        try:
            headers = [read_header(image.path) for image in case.images]
        except UnreadableFileError:
            continue
        largest = max(largest, sum(4 * h.n_channels * int(np.prod(h.grid.shape)) for h in headers))
    return largest


def _findings(case: Case, channel_names: tuple[str, ...], declared: dict[str, int] | None) -> tuple[Finding, ...]:
    return check_case(case, channel_names, declared).findings
