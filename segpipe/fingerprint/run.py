"""The stage: decode each case once, check it and measure it."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from segpipe import jobs
from segpipe.dataset.check import CheckedCase, check_case
from segpipe.dataset.match import largest_case_bytes, match_dataset
from segpipe.dataset.schema import Case, Dataset, Finding
from segpipe.errors import DatasetError
from segpipe.fingerprint.measure import (
    CaseMeasurements,
    flat_cases,
    intensity_statistics,
    measure_case,
    median_relative_size,
)
from segpipe.fingerprint.schema import Fingerprint
from segpipe.version import __version__
from segpipe.workspace import Workspace


def fingerprint(
    dataset: Path | str,
    workspace: Workspace,
    *,
    jobs_limit: int | None = None,
    on_case: Callable[[str], None] | None = None,
) -> Fingerprint:
    """Measure a dataset; writes dataset.json and fingerprint.json. An unchanged dataset is not decoded again.

    Parameters
    ----------
    dataset : Path or str
        Folder or manifest.
    workspace : Workspace
        Where to write.
    jobs_limit : int, optional
        Most worker processes.
    on_case : callable, optional
        Told each case id when it is done.

    Raises
    ------
    DatasetError
        If the folder is not a dataset, or no case is usable.
    """
    matched = match_dataset(Path(dataset))
    matched.write(workspace.dataset)
    if workspace.fingerprint.is_file():
        known = Fingerprint.read(workspace.fingerprint)
        # What could not be read or ran out of memory may succeed the next time.
        same = (known.dataset_digest, known.software) == (matched.digest(), __version__)
        if same and not {f.rule for f in known.findings} & {"failed", "unreadable"}:
            return known
    measure = partial(_check_and_measure, channel_names=matched.channel_names, declared=matched.labels)
    peak = largest_case_bytes(matched) * 6
    findings = list(matched.findings)
    measured: list[CaseMeasurements] = []
    for outcome in jobs.map_cases(measure, matched.cases, limit=jobs_limit, bytes_each=peak):
        if outcome.value:
            found, measurements = outcome.value
            findings.extend(found)
            measured.extend(measurements)
        else:
            findings.append(_failure(outcome.item, outcome.failure))
        if on_case:
            on_case(outcome.item.id)
    result = _summarise(matched, sorted(measured, key=lambda m: m.fingerprint.case), findings)
    result.write(workspace.fingerprint)
    return result


def _check_and_measure(
    case: Case, channel_names: tuple[str, ...], declared: dict[str, int] | None
) -> tuple[tuple[Finding, ...], list[CaseMeasurements]]:
    checked: CheckedCase = check_case(case, channel_names, declared)
    if checked.image is None or checked.labels is None:
        return checked.findings, []
    return checked.findings, [measure_case(case.id, checked.image, checked.labels)]


def _failure(case: Case, reason: str | None) -> Finding:
    return Finding(case=case.id, severity="error", rule="failed", message=reason or "no result")


def _summarise(dataset: Dataset, measured: list[CaseMeasurements], findings: list[Finding]) -> Fingerprint:
    cases = flat_cases([m.fingerprint for m in measured])
    if not cases:
        reasons = "; ".join(f"{f.case}: {f.rule}" for f in findings[:5])
        raise DatasetError(
            f"{dataset.root}: none of {len(dataset.cases)} matched case(s) is usable ({reasons}); `segpipe check` lists everything"
        )
    found = sorted({value for case in cases for value in case.label_voxels})
    if not found:
        raise DatasetError(f"{dataset.root}: no label file holds anything but background; nothing can be learnt")
    labels = dataset.labels or {"background": 0, **{f"label_{v}": v for v in found}}
    groups = {case.id: case.group or case.id for case in dataset.cases}
    return Fingerprint(
        dataset_name=dataset.name,
        dataset_digest=dataset.digest(),
        software=__version__,
        channel_names=dataset.channel_names,
        labels=labels,
        n_label_entries=len(labels),
        n_training_cases=len(cases),
        cases=tuple(cases),
        intensities=intensity_statistics(measured),
        median_relative_size_after_cropping=median_relative_size(cases),
        groups={c.case: groups[c.case] for c in cases},
        findings=tuple(sorted(findings, key=lambda f: f.case)),
    )
