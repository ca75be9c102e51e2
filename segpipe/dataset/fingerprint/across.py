"""Compare the cases of a dataset with each other: what is sound by itself may be unlike all the others. Pure.

Each rule is wide, so that the variety of good data gives no warning: it takes the median of the cases, and how far the others lie from it.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from math import prod

import numpy as np
from numpy.typing import NDArray

from segpipe.core.labels import Labels
from segpipe.dataset.fingerprint.case import MeasuredCase
from segpipe.dataset.fingerprint.schema import PERCENTILES, CaseFingerprint
from segpipe.dataset.schema import Finding, Severity

RULES = frozenset(
    (
        "equal images", "equal labels", "label is an image", "unusual spacing", "unusual extent", "unusual intensities",
        "many label values", "rare label value",
    )
)  # fmt: skip
"""Rules of the findings that this module makes."""
FEWEST_CASES = 4
"""With fewer cases there is no telling which of them is the odd one."""
# Factors from the median beyond which a size is unusual; a wrong unit makes 10 or 1000. Isotropic scans of 0.5 mm beside slices of 6 mm
# differ by 12 along one axis and by 4 in the mean of the three.
_VOXEL_FACTOR = 5
_AXIS_FACTOR = 16
_EXTENT_FACTOR = 10
_USUAL_SPREADS = 6
"""Nor is a size unusual within this many times the cases' own spread (median distance of the logarithm)."""
_INTENSITY_EXCESS = 0.35
"""Share of the usual range of intensities; a CT that lost its rescale exceeds by 0.5 to 1 (segpipe.planning.guard)."""
_INTENSITY_FACTOR = 16
"""Images of arbitrary scale (MR) differ by less."""
_HANDFUL = 10
"""Voxels of a label value in all cases together: fewer are a slip of the brush."""
_MANY_VALUES = 10
_SHOWN = 5


def compare_cases(
    cases: Sequence[MeasuredCase],
    declared: Labels | None,
    channel_names: Sequence[str],
    groups: Mapping[str, str],
) -> list[Finding]:
    """Return warnings about cases that are unlike the others, sorted by case.

    Parameters
    ----------
    cases : sequence of MeasuredCase
        All usable cases.
    declared : Labels, optional
        Declared labels; without them a value may be a slip.
    channel_names : sequence of str
        Channels of the dataset.
    groups : mapping
        Patient (or the case itself) of each case.
    """
    known = [case.fingerprint for case in cases]
    findings = _equal_to_a_label(cases) + _under_two_ids(cases, groups) + _with_one_label(cases, groups)
    if len(known) >= FEWEST_CASES:
        findings += _sizes(known) + _intensities(known, channel_names) + _label_values(known, declared)
    return sorted(findings, key=lambda f: f.case)


def equal_images(cases: Sequence[MeasuredCase]) -> tuple[tuple[str, ...], ...]:
    """Return the ids of cases whose images are equal, voxel by voxel."""
    by_digest: dict[str, list[str]] = defaultdict(list)
    for case in cases:
        by_digest[case.image_digest].append(case.fingerprint.case)
    return tuple(sorted(tuple(sorted(ids)) for ids in by_digest.values() if len(ids) > 1))


def _finding(case: str, rule: str, message: str, severity: Severity = "warning") -> Finding:
    return Finding(case=case, severity=severity, rule=rule, message=message)


def _under_two_ids(cases: Sequence[MeasuredCase], groups: Mapping[str, str]) -> list[Finding]:
    found = []
    for first, *others in equal_images(cases):
        for other in others:
            # Several readers of one scan are given as cases of one patient.
            severity: Severity = "note" if groups.get(other) == groups.get(first) else "warning"
            message = (
                f"its image equals that of {first}: one scan under two ids; they are kept on one side of every split"
            )
            found.append(_finding(other, "equal images", message, severity))
    return found


def _with_one_label(cases: Sequence[MeasuredCase], groups: Mapping[str, str]) -> list[Finding]:
    """Cases of different images that have one label: a file was copied, or a path stands in two rows."""
    firsts: dict[str, MeasuredCase] = {}
    found = []
    for case in cases:
        n_labelled, n_voxels = sum(case.fingerprint.label_voxels.values()), prod(case.fingerprint.shape)
        # That labels are empty, or fill their images, is no coincidence.
        if not 0 < n_labelled < n_voxels:
            continue
        first = firsts.setdefault(case.label_digest, case)
        if first.image_digest == case.image_digest:
            continue
        one, other = first.fingerprint.case, case.fingerprint.case
        severity: Severity = "note" if groups.get(other) == groups.get(one) else "warning"
        message = f"its label equals that of {one}, voxel by voxel, and the images differ; give each case its own label"
        found.append(_finding(other, "equal labels", message, severity))
    return found


def _equal_to_a_label(cases: Sequence[MeasuredCase]) -> list[Finding]:
    images = {case.image_digest: case.fingerprint.case for case in cases}
    return [
        _finding(
            case.fingerprint.case,
            "label is an image",
            f"its label equals the image of {images[case.label_digest]}, voxel by voxel; give the label file",
        )
        for case in cases
        if case.label_digest in images
    ]


def _sizes(cases: Sequence[CaseFingerprint]) -> list[Finding]:
    """Cases whose voxels or extent are many times larger or smaller than those of the others."""
    spacings = np.array([case.spacing_mm for case in cases])
    extents = spacings * np.array([case.shape for case in cases])
    usual_spacing, usual_extent = np.median(spacings, axis=0), np.median(extents, axis=0)
    voxels = _unusual(np.exp(np.log(spacings).mean(axis=1)), _VOXEL_FACTOR)
    along = np.any([_unusual(axis, _AXIS_FACTOR) for axis in spacings.T], axis=0)
    reach = np.any([_unusual(axis, _EXTENT_FACTOR) for axis in extents.T], axis=0)
    found = []
    for number, case in enumerate(cases):
        if voxels[number] or along[number]:
            message = f"voxels of {_mm(spacings[number])} (z, y, x), those of most cases {_mm(usual_spacing)}; is the header's unit right?"
            found.append(_finding(case.case, "unusual spacing", message))
        elif reach[number]:
            message = f"extends over {_mm(extents[number])} (z, y, x), most cases over {_mm(usual_extent)}; is it of the same kind?"
            found.append(_finding(case.case, "unusual extent", message))
    return found


def _unusual(values: NDArray[np.float64], factor: float) -> NDArray[np.bool_]:
    """Which positive values differ from the median by more than a factor, and by more than the others do."""
    distance = np.abs(np.log(values / np.median(values)))
    mask: NDArray[np.bool_] = distance > max(np.log(factor), _USUAL_SPREADS * float(np.median(distance)))
    return mask


def _intensities(cases: Sequence[CaseFingerprint], channel_names: Sequence[str]) -> list[Finding]:
    """Cases whose intensities are of another kind than those of the others."""
    values = np.array([case.percentiles for case in cases])
    if values.ndim != 3:
        return []
    found = []
    for channel, name in zip(range(values.shape[1]), channel_names, strict=False):
        seen = values[:, channel]
        unlike, rescaled = _unlike(seen), _rescaled(seen)
        for number in map(int, np.flatnonzero(unlike | rescaled)):
            case, usual = seen[number], np.median(seen, axis=0)
            message = (
                f"{name}: intensities run from {case[0]:.4g} to {case[-1]:.4g} (median {case[3]:.4g}), those of most cases from "
                f"{usual[0]:.4g} to {usual[-1]:.4g} (median {usual[3]:.4g}); was its rescale lost, or is it another kind of image?"
            )
            # Each image is normalised by itself, but for CT: there the scale is a measure.
            harmless = not unlike[number] and name.strip().lower() != "ct"
            found.append(
                _finding(cases[number].case, "unusual intensities", message, "note" if harmless else "warning")
            )
    return found


def _unlike(seen: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which cases' percentiles (cases, PERCENTILES) are of another kind than those of most cases."""
    low, span = seen[:, 0], _span(seen)
    mask: NDArray[np.bool_] = np.zeros(len(seen), dtype=bool)
    if span <= 0:
        return mask
    if float(np.median(low)) < -0.05 * span:
        excess = _excess(seen, span)
        mask = excess > max(_INTENSITY_EXCESS, 3 * float(np.quantile(excess, 0.75)))
    else:
        # Scales are arbitrary, as in MR; that values are not negative is not.
        negative = low < -0.1 * span
        mask = negative & (negative.mean() <= 0.2)
    return mask


def _rescaled(seen: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which cases' intensities run over a range many times larger or smaller."""
    span = _span(seen)
    return (
        _unusual(np.maximum(seen[:, -1] - seen[:, 0], 1e-6 * span), _INTENSITY_FACTOR)
        if span > 0
        else np.zeros(len(seen), bool)
    )


def _span(seen: NDArray[np.float64]) -> float:
    return float(np.median(seen[:, -1] - seen[:, 0]))


def _excess(seen: NDArray[np.float64], span: float) -> NDArray[np.float64]:
    """How far each case lies outside the range of the others, as a share of the usual span.

    A percentile may lie from the lowest that the one before it is in the others to the highest of the one after it: where a tissue fills a
    little more of one image, a percentile jumps from one tissue to the next. Of many cases the most extreme eighth is not counted, so that
    two odd cases do not hide each other.
    """
    n = len(seen)
    ordered, left_out = np.sort(seen, axis=0), n // 8
    # Of the others: without the case itself the range begins one further in, if the case is among the extremes.
    lowest, next_lowest = ordered[left_out], ordered[min(left_out + 1, n - 1)]
    highest, next_highest = ordered[n - 1 - left_out], ordered[max(n - 2 - left_out, 0)]
    low, high = np.where(seen <= lowest, next_lowest, lowest), np.where(seen >= highest, next_highest, highest)
    last = len(PERCENTILES) - 1
    before, after = np.maximum(np.arange(last + 1) - 1, 0), np.minimum(np.arange(last + 1) + 1, last)
    outside = np.maximum(np.minimum(low, low[:, before]) - seen, seen - np.maximum(high, high[:, after]))
    excess: NDArray[np.float64] = outside.max(axis=1) / span
    return excess


def _label_values(cases: Sequence[CaseFingerprint], declared: Labels | None) -> list[Finding]:
    """Cases with label values that look like a slip, or like an image in the place of a label."""
    counts = np.array([len(case.label_voxels) for case in cases])
    usual = float(np.median(counts))
    many = counts > max(3 * usual, usual + _MANY_VALUES)
    found = [
        _finding(
            case.case,
            "many label values",
            f"its label holds {len(case.label_voxels)} values, those of most cases {usual:g}; is it an image?",
        )
        for case in np.array(cases, dtype=object)[many]
    ]
    others = [case for case, odd in zip(cases, many, strict=True) if not odd]
    in_cases = Counter(value for case in others for value in case.label_voxels)
    voxels: Counter[int] = Counter()
    for case in others:
        voxels.update(case.label_voxels)
    # Who declares a value means it, and may have few voxels of it.
    severity: Severity = "warning" if declared is None else "note"
    advice = "correct the label" + (
        ", or declare the value in dataset.json" if declared is None else " if it is a slip"
    )
    for case in others:
        few = [v for v in case.label_voxels if voxels[v] <= _HANDFUL]
        alone = [v for v in case.label_voxels if declared is None and in_cases[v] == 1 and v not in few]
        for values, what in (
            (few, "no more voxels in any case"),
            (alone, "in no other case, and no labels are declared"),
        ):
            if values:
                shown = ", ".join(f"{v} ({case.label_voxels[v]} voxel(s))" for v in values[:_SHOWN])
                more = f" and {len(values) - _SHOWN} more" if len(values) > _SHOWN else ""
                message = f"label value {shown}{more}: {what}; {advice}"
                found.append(_finding(case.case, "rare label value", message, severity))
    return found


def _mm(sizes: NDArray[np.float64]) -> str:
    return " x ".join(f"{size:.3g}" for size in sizes) + " mm"
