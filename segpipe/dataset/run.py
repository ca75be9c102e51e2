"""The stage: match the files, check every case by itself, then compare the cases with each other."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from segpipe.core.workspace import Workspace
from segpipe.dataset.check import Expectations
from segpipe.dataset.fingerprint.across import compare_cases, equal_images
from segpipe.dataset.fingerprint.case import MeasuredCase, measured_case
from segpipe.dataset.match import match_again, reading_bytes
from segpipe.dataset.patients import describe_grouping, joined_groups
from segpipe.dataset.portable import name_findings
from segpipe.dataset.schema import Dataset, Finding
from segpipe.execution import processes
from segpipe.execution.processes import Workers


@dataclass(frozen=True)
class LabelFound:
    """One label value over all usable cases."""

    value: int
    name: str
    """Empty where no label of this value is declared."""
    n_cases: int
    n_voxels: int


@dataclass(frozen=True)
class CheckResult:
    """A dataset with everything that is wrong with it."""

    dataset: Dataset
    findings: tuple[Finding, ...]
    labels: tuple[LabelFound, ...] = ()
    """Every declared and every found value, the background left out."""
    notes: tuple[str, ...] = ()
    """How cases are kept together, and what is worth to know of the dataset as a whole."""


def check(
    dataset: Path | str,
    workspace: Workspace,
    *,
    resample_channels: bool | None = None,
    workers: Workers = None,
    on_case: Callable[[str], None] | None = None,
) -> CheckResult:
    """Check every case of a dataset, and compare the cases; what was read and measured is kept for the later stages.

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
    findings = [*matched.findings, *name_findings(matched, workspace.root)]
    measured: list[MeasuredCase] = []
    work = partial(measured_case, expected=Expectations.of(matched), workspace=workspace)
    for outcome in processes.map_cases(work, matched.cases, workers=workers, bytes_each=reading_bytes(matched)):
        if outcome.value:
            record, measurements = outcome.value
            findings.extend(record.findings)
            measured.extend(measurements)
        else:
            findings.append(
                Finding(
                    case=outcome.item.id, severity="error", rule="check failed", message=outcome.failure or "no result"
                )
            )
        if on_case:
            on_case(outcome.item.id)
    measured.sort(key=lambda m: m.fingerprint.case)
    groups = {case.id: case.group or case.id for case in matched.cases}
    findings += compare_cases(measured, matched.labels, matched.channel_names, groups)
    labels = _labels_found(matched, measured)
    never = [f"label {found.name} ({found.value}) is declared and in no case" for found in labels if not found.n_cases]
    usable = {m.fingerprint.case: groups[m.fingerprint.case] for m in measured}
    equal = equal_images(measured)
    grouping = describe_grouping(joined_groups(usable, equal), matched.patients_from, equal) if usable else []
    return CheckResult(
        matched,
        tuple(sorted(findings, key=lambda f: f.case)),
        labels,
        (*grouping, *matched.notes, *(never if measured else ())),
    )


def _labels_found(dataset: Dataset, measured: Sequence[MeasuredCase]) -> tuple[LabelFound, ...]:
    n_cases: Counter[int] = Counter()
    n_voxels: Counter[int] = Counter()
    for case in measured:
        n_cases.update(case.fingerprint.label_voxels.keys())
        n_voxels.update(case.fingerprint.label_voxels)
    names: dict[int, list[str]] = {}
    for target in () if dataset.labels is None else dataset.labels.targets:
        for value in target.values:
            names.setdefault(value, []).append(target.name)
    return tuple(
        LabelFound(value, ", ".join(names.get(value, [])), n_cases[value], n_voxels[value])
        for value in sorted({*names, *n_cases})
    )
