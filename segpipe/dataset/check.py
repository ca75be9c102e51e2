"""Rules that a decoded case must keep. Every broken rule is reported, not the first alone."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segpipe.core.artefact import Record
from segpipe.core.labels import Labels
from segpipe.core.volume import Volume
from segpipe.dataset.grids import LabelFile
from segpipe.dataset.load import LoadedImage, labels_on, load_image, read_label_file
from segpipe.dataset.schema import Case, Dataset, Finding, Severity
from segpipe.errors import CaseError, GeometryMismatchError, IrregularSeriesError, UnreadableFileError
from segpipe.io.formats import header_notes

LARGEST_LABEL = 2**31 - 1

UNREADABLE = "unreadable"
"""Rule of a file that cannot be read, and may be readable another time."""
_RULES = {
    UnreadableFileError: UNREADABLE,
    IrregularSeriesError: "irregular series",
    GeometryMismatchError: "different grids",
}


class Expectations(Record):
    """What a dataset says of all its cases: with it a case can be read and judged by itself."""

    channel_names: tuple[str, ...]
    labels: Labels | None
    """None accepts any non-negative integer."""
    resample_channels: bool

    @property
    def aside(self) -> tuple[int, ...]:
        """Stored label values that are no structure, the background first."""
        return (0,) if self.labels is None else self.labels.aside

    @classmethod
    def of(cls, dataset: Dataset) -> "Expectations":
        """Take them from a matched dataset."""
        return cls(
            channel_names=dataset.channel_names, labels=dataset.labels, resample_channels=dataset.resample_channels
        )


@dataclass(frozen=True)
class CheckedCase:
    """A decoded case with what is wrong with it. The arrays are there only when no error was found."""

    findings: tuple[Finding, ...]
    image: Volume | None = None
    labels: NDArray[Any] | None = None
    """(Z, Y, X) stored values, on the image's axes."""

    @property
    def errors(self) -> tuple[Finding, ...]:
        """The findings that leave the case out."""
        return tuple(f for f in self.findings if f.severity == "error")


def check_case(case: Case, expected: Expectations) -> CheckedCase:
    """Decode a case once and hold it against every rule."""
    findings: list[Finding] = []

    def report(rule: str, message: str, severity: Severity = "error") -> None:
        findings.append(Finding(case=case.id, severity=severity, rule=rule, message=message))

    image: LoadedImage | None = None
    try:
        paths = [i.path for i in case.images]
        image = load_image(case.id, paths, expected.channel_names, resample_channels=expected.resample_channels)
    except CaseError as error:
        report(_RULES.get(type(error), "channels"), str(error))
    if image is not None:
        problems = image_problems(image.volume.array)
        for rule, message in problems:
            report(rule, message)
        constant = {} if problems else constant_channels(image.volume.array)
        if len(constant) == len(expected.channel_names):
            values = ", ".join(dict.fromkeys(f"{value:g}" for value in constant.values()))
            report("blank image", f"every voxel is {values}; the export lost its values")
        else:
            for channel, value in constant.items():
                message = (
                    f"every voxel of {expected.channel_names[channel]} is {value:g}, as if that channel were missing"
                )
                report("blank channel", message, "warning")
        for path in [i.path for i in case.images]:
            for note in header_notes(path):
                which = f"{path.name}: " if len(case.images) > 1 else ""
                report("header", f"{which}{note.message}", note.severity)
    stored: LabelFile | None = None
    if case.label is not None:
        try:
            stored = read_label_file(case.id, case.label.path, expected.labels)
        except CaseError as error:
            report(_RULES.get(type(error), "label channels"), str(error))
    if case.label is not None and stored is not None:
        counts = value_counts(stored.volume.array)
        wrong = label_problems(counts, expected.labels)
        for rule, message in wrong:
            report(rule, message)
        if not wrong and not set(counts) - set(expected.aside):
            empty = f"{case.label.path.name} holds background only; it is used as a case without the structures"
            report("empty label", empty, "warning")
    labels: NDArray[Any] | None = None
    if image is not None and stored is not None:
        try:
            placed = labels_on(case.id, image, stored)
            labels = placed.array
            for note in (*stored.notes, *placed.notes):
                report("label file", note.message, note.severity)
        except CaseError as error:
            report(_RULES[GeometryMismatchError], str(error))
    checked = CheckedCase(tuple(findings))
    if checked.errors or image is None or labels is None:
        return checked
    return CheckedCase(checked.findings, image.volume, labels)


def image_problems(array: NDArray[Any]) -> list[tuple[str, str]]:
    """What is wrong with the voxels of an image (C, Z, Y, X): rule and message."""
    # A sum is not finite where a voxel is not; only then is it worth to look for which.
    finite = not np.issubdtype(array.dtype, np.floating) or bool(np.isfinite(array.sum(dtype=np.float64)))
    if not finite and not (everywhere := np.isfinite(array)).all():
        first = tuple(int(i) for i in np.argwhere(~everywhere)[0])
        corners = np.isnan(array[np.ix_(range(len(array)), *((0, n - 1) for n in array.shape[1:]))])
        outside = " (all corners are NaN: SPM and FSL mark the outside so; `fslmaths IN -nan OUT` sets it to 0)"
        return [
            (
                "non-finite voxels",
                f"{int((~everywhere).sum())} voxel(s) are NaN or infinite, the first at (c, z, y, x) = {first}; "
                f"replace them by the background value{outside if corners.all() else ''}",
            )
        ]
    if not array.any():
        return [("blank image", "every voxel is 0; the export lost its values")]
    return []


def constant_channels(array: NDArray[Any]) -> dict[int, float]:
    """Return the channels of an image (C, Z, Y, X) that have one value everywhere, with that value."""
    return {number: float(a.flat[0]) for number, a in enumerate(array) if a.size and a.min() == a.max()}


def value_counts(stored: NDArray[Any]) -> dict[float, int]:
    """Voxels of each value of a label array."""
    if not stored.size:
        return {}
    low, high = stored.min(), stored.max()
    small = 0 <= low <= high < 2**16
    if small and np.issubdtype(stored.dtype, np.floating) and (stored == np.rint(stored)).all():
        stored = stored.astype(np.uint16)
    if small and np.issubdtype(stored.dtype, np.integer):
        totals = np.zeros(int(high) + 1, dtype=np.int64)
        # Slice by slice: the counting makes a copy of eight bytes a voxel.
        for plane in stored.reshape(-1, *stored.shape[-2:]):
            totals += np.bincount(plane.ravel(), minlength=len(totals))
        return {int(v): int(totals[v]) for v in np.flatnonzero(totals)}
    values, counts = np.unique(stored, return_counts=True)
    return {float(v): int(n) for v, n in zip(values, counts, strict=True)}


def structure_mask(labels: NDArray[Any], aside: tuple[int, ...]) -> NDArray[np.bool_]:
    """Voxels of a label array that hold none of the values ``aside``: neither background nor ignored."""
    mask: NDArray[np.bool_] = labels != aside[0]
    for value in aside[1:]:
        mask &= labels != value
    return mask


def label_problems(counts: dict[float, int], declared: Labels | None) -> list[tuple[str, str]]:
    """What is wrong with the values of a label array, given with their voxels: rules and messages."""
    problems = []
    whole = {int(v): n for v, n in counts.items() if np.isfinite(v) and v == round(v)}
    no_number = sum(n for v, n in counts.items() if not np.isfinite(v))
    broken = {v: n for v, n in counts.items() if np.isfinite(v) and v != round(v)}
    if no_number:
        message = f"{no_number} voxel(s) are NaN or infinite; expected a label value: replace them by the background's, 0 as a rule"
        problems.append(("non-finite labels", message))
    if broken:
        examples = ", ".join(f"{v:.9g}" for v in list(broken)[:4])
        problems.append(
            (
                "non-integer labels",
                f"{sum(broken.values())} voxel(s) hold values such as {examples}; expected whole numbers. Interpolation (make the mask "
                "again with nearest-neighbour), or saving with a scaling in the header (save it as integers), leaves such values",
            )
        )
    outside_type = [v for v in whole if not 0 <= v <= LARGEST_LABEL]
    if outside_type:
        rule = "negative labels" if outside_type[0] < 0 else "too large labels"
        problems.append((rule, f"values {outside_type[:8]} found; expected integers from 0 to {LARGEST_LABEL}"))
    if declared is None:
        return problems
    undeclared = [v for v in whole if v not in declared.accepted and v not in outside_type]
    if undeclared:
        shown = ", ".join(f"{v} ({whole[v]} voxels)" for v in undeclared[:8])
        message = f"value(s) {shown}; declared are {list(declared.accepted)}: correct the mask or declare them"
        problems.append(("undeclared labels", message))
    elif not problems and set(whole) == {declared.ignore}:
        problems.append(
            ("nothing labelled", f"every voxel holds {declared.ignore}, the ignored value; leave the case out")
        )
    return problems
