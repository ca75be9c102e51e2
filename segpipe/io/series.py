"""Whether the slices of a DICOM series are one regular volume, and which. Pure: slices in, a stack or the reasons out.

Nothing is believed that the positions do not show: a volume needs slices of one kind, of one orientation, one at each position, at
equal distances along their normal, each above the one before.
Attributes: DICOM PS3.3 C.7.6.2 (Image Plane Module), whose world is LPS.
"""

from bisect import bisect_right
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass

import numpy as np

from segpipe.core.geometry import GRID_TOLERANCE_VOXELS, Floats, Grid
from segpipe.errors import IrregularSeriesError
from segpipe.io.notes import Note
from segpipe.io.slices import SHOWN, Slice, clusters, file_names, normal_of, placed, row_and_column, shared_place

MIN_SLICES = 3
"""With two slices there is one distance, and nothing to tell it from a gap; unless the header states the distance."""
TILT_TOLERANCE_DEGREES = 0.5
"""A stack that leans less than this keeps its lean in the grid's directions; a gantry is tilted by whole degrees."""
# Some scanners round positions to a tenth of a millimetre.
_ROUNDING_MM = 0.06
_ROUNDED_FROM_MM = 0.25
_STATED_TOLERANCE = 0.05
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0])
# Attributes that a volume has one value of, with the differences that are rounding or a scanner's own spread (ms, s/mm²).
_ONE_IN_A_VOLUME = {"EchoTime": (0.1, 0.02), "b-value": (20.0, 0.05), "component": (0.0, 0.0)}
# Some makers state no b-value where it is 0.
_NOT_STATED = {"b-value": 0.0}


@dataclass(frozen=True)
class Stack:
    """Slices in the order of their positions, and the grid they make (z, y, x)."""

    slices: tuple[Slice, ...]
    grid: Grid
    notes: tuple[Note, ...] = ()


def regular_stack(slices: Iterable[Slice], *, numbers: Collection[int] = ()) -> Stack:
    """Order slices by position and make sure that they are one regular volume.

    Parameters
    ----------
    slices : iterable of Slice
        Slices of the volume, in any order.
    numbers : collection of int
        InstanceNumber of other slices of the series, which belong to other volumes.

    Raises
    ------
    IrregularSeriesError
        With the reason and the positions at fault.
    """
    images, places = placed(slices)
    _require_one_image_a_place(images, places)
    _require_one_kind(images)
    distance = _regular_distance(images, places)
    _require_upright(images, normal_of(images[0]))
    _require_in_line(images, distance)
    notes = (*_stated_distance_notes(images, distance, numbers), *_slope_notes(images), *_lean_notes(images))
    return Stack(tuple(images), _grid(images), notes)


def _require_one_kind(images: list[Slice]) -> None:
    """Raise when slices at different positions are of different contrasts."""
    for name, (absolute, relative) in _ONE_IN_A_VOLUME.items():
        by_value: Counter[str] = Counter()
        told = [s.kinds.get(name, _NOT_STATED.get(name)) for s in images]
        starts = clusters((v for v in told if isinstance(v, float)), absolute, relative)
        form = ".1f" if name == "EchoTime" else "g"
        for value in told:
            by_value[
                f"{starts[bisect_right(starts, value) - 1]:{form}}" if isinstance(value, float) else str(value)
            ] += 1
        if len(by_value) > 1:
            shown = ", ".join(f"{value} ({n} images)" for value, n in list(by_value.items())[:SHOWN])
            raise IrregularSeriesError(
                f"slices of several contrasts in one series: {name} is {shown}; a volume has one"
            )


def _require_one_image_a_place(images: list[Slice], places: Floats) -> None:
    if problem := shared_place(images, places):
        raise IrregularSeriesError(problem)


def _regular_distance(images: list[Slice], places: Floats) -> float:
    steps = np.diff(places)
    stated = images[0].slice_distance_mm
    if len(images) < MIN_SLICES:
        known = len(images) == 2 and stated is not None and abs(stated / steps[0] - 1) <= _STATED_TOLERANCE
        if not known:
            raise IrregularSeriesError(
                f"{len(images)} slice(s), at {', '.join(f'{p:.3f}' for p in places)} mm; expected at least {MIN_SLICES}: "
                "with fewer nothing shows whether one is missing"
            )
    # Gaps are whole multiples of the smallest distance.
    usual = float(steps.min())
    multiples = np.round(steps / usual)
    gaps = np.flatnonzero(multiples > 1)
    if len(gaps) and (np.abs(steps / usual - multiples) <= GRID_TOLERANCE_VOXELS).all():
        shown = "; ".join(
            f"{int(multiples[i]) - 1} between {places[i]:.3f} and {places[i + 1]:.3f} mm" for i in gaps[:SHOWN]
        )
        raise IrregularSeriesError(
            f"missing slice(s): {shown}, where slices are {usual:.3f} mm apart; export the whole series again"
        )
    number = np.arange(len(places))
    distance, first = np.polyfit(number, places, 1)
    off = max(np.abs(places - first - number * distance).max(), np.abs(steps - distance).max() / 2)
    if off > _tolerance_mm(distance):
        at = int(np.argmax(np.abs(steps - distance)))
        raise IrregularSeriesError(
            f"uneven slices: distances from {steps.min():.3f} to {steps.max():.3f} mm, {steps[at]:.3f} between {places[at]:.3f} and "
            f"{places[at + 1]:.3f} mm where {np.median(steps):.3f} is usual; resample the series to one distance"
        )
    return float((places[-1] - places[0]) / (len(places) - 1))


def _tolerance_mm(distance: float) -> float:
    """How far a slice may lie from its place."""
    share = GRID_TOLERANCE_VOXELS * distance
    return max(share, _ROUNDING_MM) if distance >= _ROUNDED_FROM_MM else share


def _require_in_line(images: list[Slice], distance: float) -> None:
    """Raise when a slice lies beside the straight line from the first to the last."""
    positions = np.array([s.position for s in images])
    expected = np.linspace(positions[0], positions[-1], len(positions))
    beside = np.linalg.norm(positions - expected, axis=1)
    worst = int(np.argmax(beside))
    # Both ends may be rounded, and the slice itself.
    if beside[worst] > 2 * _tolerance_mm(distance):
        shown = ", ".join(f"{v:.3f}" for v in positions[worst])
        raise IrregularSeriesError(
            f"slices do not lie above each other: {images[worst].file.name} is at ({shown}) mm, {beside[worst]:.3f} mm beside its place; "
            "the series was put together from several, or the patient table moved"
        )


def _require_upright(images: list[Slice], normal: Floats) -> None:
    way = np.subtract(images[-1].position, images[0].position)  # type: ignore[arg-type]
    lean = float(np.degrees(np.arccos(np.clip(way @ normal / np.linalg.norm(way), -1, 1))))
    if lean > TILT_TOLERANCE_DEGREES:
        first, second = (", ".join(f"{v:.3f}" for v in s.position or ()) for s in images[:2])
        raise IrregularSeriesError(
            f"gantry tilt: the stack leans by {lean:.2f} degrees (positions ({first}) and ({second}) with normal "
            f"({', '.join(f'{v:.3f}' for v in normal)})); its voxels are sheared: correct the tilt first"
        )


def _stated_distance_notes(images: list[Slice], distance: float, others: Collection[int]) -> tuple[Note, ...]:
    """What the header and the images' numbers say against the positions.

    Raises
    ------
    IrregularSeriesError
        If both the stated distance and the images' numbers say that every second (third, ...) slice alone is there.
    """
    stated = images[0].slice_distance_mm
    numbers = [s.number for s in images if s.number is not None]
    strides = set(np.abs(np.diff(numbers)).tolist())
    step = strides.pop() if len(numbers) == len(images) and len(strides) == 1 else 1
    # The numbers in between belong to other volumes of the series.
    step = 1 if set(others) & set(range(min(numbers, default=0), max(numbers, default=0))) - set(numbers) else step
    if stated is None:
        return (_step_warning(numbers, step),) if step > 1 else ()
    if abs(stated / distance - 1) <= _STATED_TOLERANCE:
        return ()
    times = round(distance / stated)
    told = f"SpacingBetweenSlices says {stated:g} mm, the positions {distance:.4g} mm"
    if times > 1 and abs(distance / stated - times) <= GRID_TOLERANCE_VOXELS:
        if step == times:
            raise IrregularSeriesError(
                f"missing slices: {told}, and the images are numbered in steps of {times} ({numbers[0]}, {numbers[1]}, ...): "
                f"only one of {times} slices is here; export the whole series again"
            )
        return (
            Note(
                "warning",
                f"{told}, {times} times as much; the positions are believed: make sure that no slices are missing",
            ),
        )
    return (Note("note", f"{told}; the positions are believed"),)


def _step_warning(numbers: list[int], step: int) -> Note:
    return Note(
        "warning",
        f"the images are numbered in steps of {step} ({numbers[0]}, {numbers[1]}, ...), and SpacingBetweenSlices is not stated: "
        "make sure that no slices are missing",
    )


def _slope_notes(images: list[Slice]) -> tuple[Note, ...]:
    flat = [s for s in images if s.slope == 0]
    if not flat:
        return ()
    return (Note("warning", f"RescaleSlope is 0 in {len(flat)} image(s) ({file_names(flat)}); it is taken as 1"),)


def _lean_notes(images: list[Slice]) -> tuple[Note, ...]:
    """Say how far a stack leans, when that moves its last slice by more than a pixel."""
    way = np.subtract(images[-1].position, images[0].position)  # type: ignore[arg-type]
    normal = normal_of(images[0])
    beside = float(np.linalg.norm(way - (way @ normal) * normal))
    if beside <= min(images[0].pixel_spacing_mm or (1.0, 1.0)):
        return ()
    lean = float(np.degrees(np.arcsin(np.clip(beside / np.linalg.norm(way), 0, 1))))
    return (
        Note(
            "note",
            f"the stack leans by {lean:.3f} degrees: its last slice lies {beside:.2f} mm beside the first slice's normal; "
            "the lean is kept in the grid's directions",
        ),
    )


def _grid(images: list[Slice]) -> Grid:
    first = images[0]
    row, column = row_and_column(first)
    between_rows, between_columns = first.pixel_spacing_mm or (1.0, 1.0)
    step = np.subtract(images[-1].position, first.position) / (len(images) - 1)  # type: ignore[arg-type]
    affine = np.eye(4)
    affine[:3, :3] = _LPS_TO_RAS @ np.stack([step, column * between_rows, row * between_columns], axis=1)
    affine[:3, 3] = _LPS_TO_RAS @ np.asarray(first.position)
    return Grid.from_affine((len(images), *first.shape), affine)
