"""The stage: decode each case once, check it and measure it."""

from collections.abc import Callable
from functools import partial

from segpipe.core.artefact import json_digest
from segpipe.core.labels import Labels
from segpipe.core.regular import lies
from segpipe.core.workspace import Workspace
from segpipe.dataset.check import Expectations
from segpipe.dataset.fingerprint.across import compare_cases, equal_images
from segpipe.dataset.fingerprint.case import MeasuredCase, measured_case
from segpipe.dataset.fingerprint.measure import flat_cases, intensity_statistics, median_relative_size
from segpipe.dataset.fingerprint.schema import Fingerprint
from segpipe.dataset.match import reading_bytes
from segpipe.dataset.names import digits_of
from segpipe.dataset.patients import joined_groups
from segpipe.dataset.schema import Case, Dataset, Finding
from segpipe.dataset.store import all_read_now, mark_all_read
from segpipe.errors import DatasetError
from segpipe.execution import processes
from segpipe.execution.processes import Workers
from segpipe.io.formats import stem_of
from segpipe.version import CASES_AS_OF

_SAID = ("patients_from", "given", "notes")
"""Fields of a dataset that are said of it and change nothing that is made of its cases."""


def measure(
    matched: Dataset,
    workspace: Workspace,
    *,
    before: Dataset | None = None,
    workers: Workers = None,
    on_case: Callable[[str], None] | None = None,
) -> Fingerprint:
    """Measure a dataset; writes dataset.json, fingerprint.json and the decoded cases. An unchanged case is not read again.

    Parameters
    ----------
    matched : Dataset
        Cases with their files.
    workspace : Workspace
        Where to write.
    before : Dataset, optional
        The dataset as the workspace knows it, where it was read already.
    workers : int or executor, optional
        Most worker processes, or whose.
    on_case : callable, optional
        Receives each case id when the case is done.

    Raises
    ------
    DatasetError
        If no case is usable.
    """
    if lies(workspace.fingerprint) and lies(workspace.dataset):
        known = Fingerprint.read(workspace.fingerprint)
        # What could not be read or ran out of memory may succeed the next time.
        same = (
            known.software == CASES_AS_OF
            and all_read_now(workspace.case_folder)
            and (before or Dataset.read(workspace.dataset)) == matched
        )
        if same and not {f.rule for f in known.findings} & {"failed", "unreadable"}:
            return known
    work = partial(measured_case, expected=Expectations.of(matched), workspace=workspace)
    findings = list(matched.findings)
    measured: list[MeasuredCase] = []
    contents: dict[str, str] = {}
    for outcome in processes.map_cases(work, matched.cases, workers=workers, bytes_each=reading_bytes(matched)):
        if outcome.value:
            record, measurements = outcome.value
            contents[outcome.item.id] = record.content_digest()
            findings.extend(record.findings)
            measured.extend(measurements)
        else:
            findings.append(_failure(outcome.item, outcome.failure))
        if on_case:
            on_case(outcome.item.id)
    result = _summarise(matched, sorted(measured, key=lambda m: m.fingerprint.case), findings, contents)
    result.write(workspace.fingerprint)
    mark_all_read(workspace.case_folder)
    # Last: where it is, the fingerprint is that of these files.
    matched.write(workspace.dataset)
    return result


def _digest(dataset: Dataset, contents: dict[str, str]) -> str:
    """Digest of a dataset by the content of its cases: files that were copied or touched leave it as it is."""
    cases = [[c.id, c.group, contents.get(c.id)] for c in dataset.cases]
    return json_digest([dataset.model_dump(mode="json", exclude={"cases", "root", *_SAID}), cases])


def _failure(case: Case, reason: str | None) -> Finding:
    return Finding(case=case.id, severity="error", rule="failed", message=reason or "no result")


def _summarise(
    dataset: Dataset, measured: list[MeasuredCase], findings: list[Finding], contents: dict[str, str]
) -> Fingerprint:
    cases = flat_cases([m.fingerprint for m in measured])
    if not cases:
        reasons = "; ".join(f"{f.case}: {f.rule}" for f in findings[:5])
        raise DatasetError(
            f"{dataset.root}: none of {len(dataset.cases)} matched case(s) is usable ({reasons}); `segpipe check` lists everything"
        )
    found = sorted({value for case in cases for value in case.label_voxels})
    if not found:
        raise DatasetError(f"{dataset.root}: no label file holds anything but background; nothing can be learnt")
    of_all = {case.id: case.group or case.id for case in dataset.cases}
    groups, equal = {case.case: of_all[case.case] for case in cases}, equal_images(measured)
    unlike = compare_cases(measured, dataset.labels, dataset.channel_names, groups)
    unlike = [finding for finding in unlike if finding.severity == "warning"]
    return Fingerprint(
        dataset_name=dataset.name,
        dataset_digest=_digest(dataset, contents),
        software=CASES_AS_OF,
        channel_names=dataset.channel_names,
        labels=dataset.labels or Labels.plain({f"label_{v}": v for v in found}),
        resample_channels=dataset.resample_channels,
        n_training_cases=len(cases),
        cases=tuple(cases),
        intensities=intensity_statistics([m.measurements for m in measured]),
        median_relative_size_after_cropping=median_relative_size(cases),
        groups=joined_groups(groups, equal),
        equal_images=equal,
        digits=digits_of((case.id, stem_of(case.images[0].path)) for case in dataset.cases),
        findings=tuple(sorted([*findings, *unlike], key=lambda f: f.case)),
    )
