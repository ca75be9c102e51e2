"""Rules that a decoded case must keep. Every broken rule is reported, not the first alone."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segpipe.dataset.load import LoadedImage, load_image, load_labels
from segpipe.dataset.schema import Case, Finding
from segpipe.errors import CaseError, GeometryMismatchError, UnreadableFileError
from segpipe.volume import Volume

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

    def report(rule: str, message: str, severity: str = "error") -> None:
        findings.append(Finding(case=case.id, severity=severity, rule=rule, message=message))

    image: LoadedImage | None = None
    try:
        image = load_image(case.id, [i.path for i in case.images], channel_names)
    except CaseError as error:
        report(_RULES.get(type(error), "channels"), str(error))
    if image is not None:
        for rule, message in image_problems(image.volume.array):
            report(rule, message)
    if image is None or case.label is None:
        return CheckedCase(tuple(findings))
    try:
        stored = load_labels(case.id, case.label.path, image)
    except CaseError as error:
        report(_RULES.get(type(error), "label channels"), str(error))
        return CheckedCase(tuple(findings))
    problem = label_problem(stored, declared)
    if problem:
        report(*problem)
    elif not stored.any():
        report(
            "empty label",
            f"{case.label.path.name} holds background only; it is used as a case without the structures",
            "warning",
        )
    checked = CheckedCase(tuple(findings))
    return checked if checked.errors else CheckedCase(checked.findings, image.volume, stored.astype(np.int32))


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


def label_problem(stored: NDArray[Any], declared: dict[str, int] | None) -> tuple[str, str] | None:
    """What is wrong with the values of a label array: rule and message, or None."""
    if not np.issubdtype(stored.dtype, np.integer):
        whole = np.isfinite(stored) & (stored == np.round(stored))
        if not whole.all():
            examples = ", ".join(f"{v:.4g}" for v in np.unique(stored[~whole])[:4])
            return (
                "non-integer labels",
                f"{int((~whole).sum())} voxel(s) hold values such as {examples}; the mask was resampled with interpolation: "
                "make it again with nearest-neighbour",
            )
    values = [int(v) for v in np.unique(stored)]
    if values[0] < 0:
        return "negative labels", f"values {[v for v in values if v < 0][:8]} found; expected non-negative integers"
    if declared is not None:
        outside = [v for v in values if v not in declared.values()]
        if outside:
            counts = ", ".join(f"{v} ({int((stored == v).sum())} voxels)" for v in outside[:8])
            return (
                "undeclared labels",
                f"value(s) {counts}; declared are {sorted(declared.values())}: correct the mask or declare them",
            )
    return None
