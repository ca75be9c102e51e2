"""Rules that a decoded case must keep. Every broken rule is reported, not the first alone."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from segpipe.dataset.load import LoadedImage, labels_on, load_image, read_labels
from segpipe.dataset.schema import Case, Finding
from segpipe.errors import CaseError, GeometryMismatchError, UnreadableFileError
from segpipe.io.formats import header_notes
from segpipe.volume import Volume

LARGEST_LABEL = 2**31 - 1

_RULES = {UnreadableFileError: "unreadable", GeometryMismatchError: "different grids"}


@dataclass(frozen=True)
class CheckedCase:
    """A decoded case with what is wrong with it. The arrays are there only when no error was found."""

    findings: tuple[Finding, ...]
    image: Volume | None = None
    labels: NDArray[np.int32] | None = None

    @property
    def errors(self) -> tuple[Finding, ...]:
        """The findings that leave the case out."""
        return tuple(f for f in self.findings if f.severity == "error")


def check_case(case: Case, channel_names: tuple[str, ...], declared: dict[str, int] | None) -> CheckedCase:
    """Decode a case once and hold it against every rule.

    Parameters
    ----------
    case : Case
        Its image and label files.
    channel_names : tuple of str
        The dataset's channels.
    declared : dict of str to int, or None
        The dataset's label values; None accepts any non-negative integer.
    """
    findings: list[Finding] = []

    def report(rule: str, message: str, severity: Literal["error", "warning", "note"] = "error") -> None:
        findings.append(Finding(case=case.id, severity=severity, rule=rule, message=message))

    image: LoadedImage | None = None
    try:
        image = load_image(case.id, [i.path for i in case.images], channel_names)
    except CaseError as error:
        report(_RULES.get(type(error), "channels"), str(error))
    if image is not None:
        for rule, message in image_problems(image.volume.array):
            report(rule, message)
    stored: Volume | None = None
    if case.label is not None:
        try:
            stored = read_labels(case.id, case.label.path)
        except CaseError as error:
            report(_RULES.get(type(error), "label channels"), str(error))
    if case.label is not None and stored is not None:
        problems = label_problems(stored.array, declared)
        for rule, message in problems:
            report(rule, message)
        if not problems and not stored.array.any():
            empty = f"{case.label.path.name} holds background only; it is used as a case without the structures"
            report("empty label", empty, "warning")
    if image is not None:
        for stamp in case.images:
            for note in header_notes(stamp.path):
                report("header", note, "note")
    labels: NDArray[Any] | None = None
    if image is not None and stored is not None:
        try:
            labels = labels_on(case.id, image, stored)
        except CaseError as error:
            report(_RULES[GeometryMismatchError], str(error))
    checked = CheckedCase(tuple(findings))
    if checked.errors or image is None or labels is None:
        return checked
    return CheckedCase(checked.findings, image.volume, labels.astype(np.int32))


def image_problems(array: NDArray[np.float32]) -> list[tuple[str, str]]:
    """What is wrong with the voxels of an image (C, Z, Y, X): rule and message."""
    problems = []
    finite = np.isfinite(array)
    if not finite.all():
        first = tuple(int(i) for i in np.argwhere(~finite)[0])
        problems.append(
            (
                "non-finite voxels",
                f"{int((~finite).sum())} voxel(s) are NaN or infinite, the first at (c, z, y, x) = {first}; "
                "replace them by the background value",
            )
        )
    elif not array.any():
        problems.append(("blank image", "every voxel is 0; the export lost its values"))
    return problems


def label_problems(stored: NDArray[Any], declared: dict[str, int] | None) -> list[tuple[str, str]]:
    """What is wrong with the values of a label array: rules and messages."""
    problems = []
    values = np.unique(stored)
    whole = values[np.isfinite(values) & (values == np.round(values))]
    if len(whole) < len(values):
        broken = values[~np.isin(values, whole)]
        n_voxels = int((~np.isin(stored, whole)).sum())
        examples = ", ".join(f"{v:.4g}" for v in broken[:4])
        problems.append(
            (
                "non-integer labels",
                f"{n_voxels} voxel(s) hold values such as {examples}; the mask was resampled with interpolation: "
                "make it again with nearest-neighbour",
            )
        )
    integers = [int(v) for v in whole]
    outside_type = [v for v in integers if not 0 <= v <= LARGEST_LABEL]
    if outside_type:
        rule = "negative labels" if outside_type[0] < 0 else "too large labels"
        problems.append((rule, f"values {outside_type[:8]} found; expected integers from 0 to {LARGEST_LABEL}"))
    undeclared = (
        [] if declared is None else [v for v in integers if v not in declared.values() and v not in outside_type]
    )
    if declared is not None and undeclared:
        counts = ", ".join(f"{v} ({int((stored == v).sum())} voxels)" for v in undeclared[:8])
        message = f"value(s) {counts}; declared are {sorted(declared.values())}: correct the mask or declare them"
        problems.append(("undeclared labels", message))
    return problems
