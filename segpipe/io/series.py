"""Whether the slices of a DICOM series are one regular volume, and which. Pure: slices in, a stack or the reasons out.

Nothing is believed that the positions do not show: a volume needs slices of one kind, of one orientation, one at each position, at
equal distances along their normal, each above the one before.
Attributes: DICOM PS3.3 C.7.6.2 (Image Plane Module), whose world is LPS.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from segpipe.core.geometry import GRID_TOLERANCE_VOXELS, Floats, Grid
from segpipe.errors import IrregularSeriesError
from segpipe.io.notes import Note

MIN_SLICES = 3
"""With two slices there is one distance, and nothing to tell it from a gap; unless the header states the distance."""
TILT_TOLERANCE_DEGREES = 0.5
"""A stack that leans less than this keeps its lean in the grid's directions; a gantry is tilted by whole degrees."""
_ORIENTATION_TOLERANCE = 1e-3
_UNIT_TOLERANCE = 0.01
# Some scanners round positions to a tenth of a millimetre.
_ROUNDING_MM = 0.06
_ROUNDED_FROM_MM = 0.25
_STATED_TOLERANCE = 0.05
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0])
_SHOWN = 4


@dataclass(frozen=True)
class Slice:
    """What one image, or one frame of an image, says of itself."""

    file: Path
    instance_uid: str
    """SOPInstanceUID; empty where it is not stated."""
    position: tuple[float, float, float] | None
    """Position of the first voxel's centre, LPS mm."""
    orientation: tuple[float, ...] | None
    """Direction of a row, then of a column, LPS."""
    pixel_spacing_mm: tuple[float, float] | None
    """Between rows, between columns."""
    shape: tuple[int, int]
    """Rows, columns."""
    class_uid: str = ""
    frame: int = 0
    number: int | None = None
    """InstanceNumber."""
    image_type: tuple[str, ...] = ()
    slice_distance_mm: float | None = None
    """What the header states."""
    kinds: dict[str, str] = field(default_factory=dict)
    """What tells apart images of one place: echo, b-value, acquisition, ..."""
    exclusive: tuple[str, ...] = ()
    """Those of ``kinds`` that a single volume has one value of."""


@dataclass(frozen=True)
class Stack:
    """Slices in the order of their positions, and the grid they make (z, y, x)."""

    slices: tuple[Slice, ...]
    grid: Grid
    notes: tuple[Note, ...] = ()


def regular_stack(slices: Iterable[Slice]) -> Stack:
    """Order slices by position and make sure that they are one regular volume.

    Raises
    ------
    IrregularSeriesError
        With the reason and the positions at fault.
    """
    images = _without_copies(list(slices))
    _require_planes(images)
    _require_one_orientation(images)
    _require_one_shape(images)
    _require_one_kind(images)
    normal = _normal(images[0])
    images.sort(key=lambda s: float(normal @ np.asarray(s.position)))
    places = np.array([normal @ np.asarray(s.position) for s in images])
    _require_one_image_a_place(images, places)
    distance = _regular_distance(images, places)
    _require_upright(images, normal)
    _require_in_line(images, distance)
    return Stack(tuple(images), _grid(images), _stated_distance_notes(images, distance))


def _without_copies(images: list[Slice]) -> list[Slice]:
    """Each image once: a second file of the same image adds nothing."""
    kept: dict[tuple[str, int], Slice] = {}
    for s in images:
        key = (s.instance_uid or str(s.file), s.frame)
        first = kept.setdefault(key, s)
        if (first.position, first.orientation) != (s.position, s.orientation):
            raise IrregularSeriesError(
                f"{first.file.name} and {s.file.name} have one SOPInstanceUID and lie at {first.position} and {s.position} mm; "
                "identities were lost, export the series again"
            )
    return list(kept.values())


def _require_planes(images: list[Slice]) -> None:
    localisers = [s for s in images if {"LOCALIZER", "SCOUT"} & {t.upper() for t in s.image_type}]
    if localisers:
        raise IrregularSeriesError(
            f"{len(localisers)} of {len(images)} image(s) are localisers ({_files(localisers)}), not a volume; leave them out"
        )
    bare = [s for s in images if not _is_placed(s)]
    if bare:
        raise IrregularSeriesError(
            f"{len(bare)} of {len(images)} image(s) have no usable position, orientation or pixel spacing ({_files(bare)}); "
            "they cannot be placed in a volume"
        )


def _is_placed(image: Slice) -> bool:
    if image.position is None or image.orientation is None or image.pixel_spacing_mm is None:
        return False
    lengths = np.linalg.norm(np.reshape(image.orientation, (2, 3)), axis=1)
    finite = np.isfinite([*image.position, *image.orientation, *image.pixel_spacing_mm]).all()
    return bool(finite and (np.abs(lengths - 1) < _UNIT_TOLERANCE).all())


def _require_one_shape(images: list[Slice]) -> None:
    shapes = Counter(f"{s.shape[0]}x{s.shape[1]}" for s in images)
    spacings = Counter(" x ".join(f"{v:.4g}" for v in s.pixel_spacing_mm or ()) + " mm" for s in images)
    for name, found in (("rows x columns", shapes), ("pixel spacing", spacings)):
        if len(found) > 1:
            shown = ", ".join(f"{n} image(s) with {value}" for value, n in found.most_common(_SHOWN))
            raise IrregularSeriesError(f"images differ in {name}: {shown}; a volume has one")


def _require_one_kind(images: list[Slice]) -> None:
    for name in images[0].exclusive:
        by_value = defaultdict(list)
        for s in images:
            by_value[s.kinds.get(name, "none")].append(s)
        if len(by_value) > 1:
            shown = ", ".join(f"{value} ({len(found)} images)" for value, found in sorted(by_value.items())[:_SHOWN])
            raise IrregularSeriesError(
                f"several volumes in one series: {name} is {shown}; give each a series of its own"
            )


def _require_one_orientation(images: list[Slice]) -> None:
    groups: list[list[Slice]] = []
    for s in images:
        for group in groups:
            if np.abs(np.subtract(s.orientation, group[0].orientation)).max() <= _ORIENTATION_TOLERANCE:  # type: ignore[arg-type]
                group.append(s)
                break
        else:
            groups.append([s])
    if len(groups) > 1:
        shown = "; ".join(
            f"{len(g)} image(s) with ({', '.join(f'{v:.3f}' for v in g[0].orientation or ())}) such as {g[0].file.name}"
            for g in groups[:_SHOWN]
        )
        raise IrregularSeriesError(f"mixed orientations: {shown}; keep one of them")
    if abs(float(np.dot(*_row_and_column(images[0])))) > _ORIENTATION_TOLERANCE:
        raise IrregularSeriesError(f"rows and columns are not at right angles: orientation is {images[0].orientation}")


def _require_one_image_a_place(images: list[Slice], places: Floats) -> None:
    scale = float(np.median(np.diff(places))) if len(images) > 1 else 0.0
    together = np.flatnonzero(np.diff(places) <= max(GRID_TOLERANCE_VOXELS * scale, 1e-3))
    if not len(together):
        return
    at = places[together[0]]
    same = [s for s, place in zip(images, places, strict=True) if at <= place <= places[together[0] + 1]]
    differing = {name: sorted({s.kinds.get(name, "none") for s in same}) for name in same[0].kinds}
    apart = ", ".join(f"{name} ({', '.join(v[:_SHOWN])})" for name, v in differing.items() if len(v) > 1)
    everywhere = " and no two at different ones" if float(np.ptp(places)) <= 1e-3 else ""
    raise IrregularSeriesError(
        f"not a volume: {len(same)} images at position {at:.3f} mm{everywhere} ({_files(same)}); they differ in "
        f"{apart or 'nothing that is stated'}: give each volume a series of its own"
    )


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
            f"{int(multiples[i]) - 1} between {places[i]:.3f} and {places[i + 1]:.3f} mm" for i in gaps[:_SHOWN]
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


def _stated_distance_notes(images: list[Slice], distance: float) -> tuple[Note, ...]:
    """What the header says against the positions.

    Raises
    ------
    IrregularSeriesError
        If both the stated distance and the images' numbers say that every second (third, ...) slice alone is there.
    """
    stated = images[0].slice_distance_mm
    if stated is None or abs(stated / distance - 1) <= _STATED_TOLERANCE:
        return ()
    times = round(distance / stated)
    numbers = [s.number for s in images if s.number is not None]
    strides = set(np.abs(np.diff(numbers)).tolist())
    told = f"SpacingBetweenSlices says {stated:g} mm, the positions {distance:.4g} mm"
    if times > 1 and abs(distance / stated - times) <= GRID_TOLERANCE_VOXELS:
        if len(numbers) == len(images) and strides == {times}:
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


def _grid(images: list[Slice]) -> Grid:
    first = images[0]
    row, column = _row_and_column(first)
    between_rows, between_columns = first.pixel_spacing_mm or (1.0, 1.0)
    step = np.subtract(images[-1].position, first.position) / (len(images) - 1)  # type: ignore[arg-type]
    affine = np.eye(4)
    affine[:3, :3] = _LPS_TO_RAS @ np.stack([step, column * between_rows, row * between_columns], axis=1)
    affine[:3, 3] = _LPS_TO_RAS @ np.asarray(first.position)
    return Grid.from_affine((len(images), *first.shape), affine)


def _row_and_column(image: Slice) -> tuple[Floats, Floats]:
    """Unit vectors along a row (columns grow) and along a column (rows grow)."""
    vectors = np.asarray(image.orientation, dtype=np.float64).reshape(2, 3)
    row, column = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return row, column


def _normal(image: Slice) -> Floats:
    normal: Floats = np.cross(*_row_and_column(image))
    return normal


def _files(images: list[Any]) -> str:
    names = sorted({s.file.name for s in images})
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
