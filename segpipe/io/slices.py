"""Slices of DICOM images, and whether they are of one kind: placed, of one orientation, shape and pixel spacing, each once.

Attributes: DICOM PS3.3 C.7.6.2 (Image Plane Module), whose world is LPS.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from segpipe.core.geometry import GRID_TOLERANCE_VOXELS, Floats
from segpipe.errors import IrregularSeriesError

_ORIENTATION_TOLERANCE = 1e-3
_UNIT_TOLERANCE = 0.01
SAME_PLACE_MM = 1e-3
SHOWN = 4
"""How many names or values a message shows."""


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
    slope: float = 1.0
    intercept: float = 0.0
    """The value of a voxel is what is stored times slope, plus intercept."""
    kinds: dict[str, Any] = field(default_factory=dict)
    """What tells apart images of one place (echo, b-value, acquisition, ...): numbers, vectors of numbers, texts."""


def placed(slices: Iterable[Slice]) -> tuple[list[Slice], Floats]:
    """Return the slices ordered along their normal, and where each lies on it in mm; each image once.

    Raises
    ------
    IrregularSeriesError
        If they have no position, or not one orientation, shape and pixel spacing.
    """
    images = _without_copies(list(slices))
    _require_planes(images)
    _require_one_orientation(images)
    _require_one_shape(images)
    normal = normal_of(images[0])
    images.sort(key=lambda s: float(normal @ np.asarray(s.position)))
    return images, np.array([normal @ np.asarray(s.position) for s in images])


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
            f"{len(localisers)} of {len(images)} image(s) are localisers ({file_names(localisers)}), not a volume; leave them out"
        )
    bare = [s for s in images if not _is_placed(s)]
    if bare:
        raise IrregularSeriesError(
            f"{len(bare)} of {len(images)} image(s) have no usable position, orientation or pixel spacing ({file_names(bare)}); "
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
    spacings: Counter[tuple[float, float]] = Counter()
    for s in images:
        own = s.pixel_spacing_mm or (1.0, 1.0)
        # Equal when the last pixel of a row or column lies at the same place, within the tolerance of a grid.
        spacings[next((k for k in spacings if _same_spacing(k, own, max(s.shape))), own)] += 1
    named = Counter({" x ".join(f"{v:.6g}" for v in spacing) + " mm": n for spacing, n in spacings.items()})
    for name, found in (("rows x columns", shapes), ("pixel spacing", named)):
        if len(found) > 1:
            shown = ", ".join(f"{n} image(s) with {value}" for value, n in found.most_common(SHOWN))
            raise IrregularSeriesError(f"images differ in {name}: {shown}; a volume has one")


def _same_spacing(one: tuple[float, float], other: tuple[float, float], n_pixels: int) -> bool:
    return all(abs(a - b) * n_pixels <= GRID_TOLERANCE_VOXELS * a for a, b in zip(one, other, strict=True))


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
            for g in groups[:SHOWN]
        )
        raise IrregularSeriesError(f"mixed orientations: {shown}; keep one of them")
    if abs(float(np.dot(*row_and_column(images[0])))) > _ORIENTATION_TOLERANCE:
        raise IrregularSeriesError(f"rows and columns are not at right angles: orientation is {images[0].orientation}")


def positions_of(places: Floats) -> list[int]:
    """Return the number of the position of each image, from 0; images at one position share it.

    Parameters
    ----------
    places : ndarray, shape (N,)
        Where each image lies along the normal in mm, ascending.
    """
    steps = np.diff(places)
    apart = steps[steps > SAME_PLACE_MM]
    scale = float(np.median(apart)) if len(apart) else 0.0
    return [0, *np.cumsum(steps > max(GRID_TOLERANCE_VOXELS * scale, SAME_PLACE_MM)).tolist()]


def clusters(values: Iterable[float], absolute: float, relative: float) -> list[float]:
    """Return the smallest value of each group of numbers that lie close together, ascending.

    Parameters
    ----------
    values : iterable of float
        Numbers, in any order.
    absolute, relative : float
        How far neighbours in one group may lie apart, and as a share of the larger one.
    """
    starts: list[float] = []
    last = -np.inf
    for value in sorted(values):
        if value - last > max(absolute, relative * abs(value)):
            starts.append(value)
        last = value
    return starts


def shared_place(images: list[Slice], places: Floats) -> str | None:
    """Say which images lie at one position, and in what they differ; None where each has its own.

    Parameters
    ----------
    images : list of Slice
        Images, ordered along their normal.
    places : ndarray, shape (N,)
        Where each lies on it in mm.
    """
    numbers = positions_of(places)
    shared, n_here = Counter(numbers).most_common(1)[0]
    if n_here == 1:
        return None
    same = [s for s, number in zip(images, numbers, strict=True) if number == shared]
    differing = {
        name: {_shown_value(s.kinds.get(name)) for s in same}
        for name in dict.fromkeys(k for s in same for k in s.kinds)
    }
    differing["InstanceNumber"] = {_shown_value(s.number) for s in same}
    apart = ", ".join(f"{name} ({', '.join(sorted(v)[:SHOWN])})" for name, v in differing.items() if len(v) > 1)
    everywhere = " and no two at different ones" if float(np.ptp(places)) <= SAME_PLACE_MM else ""
    at = places[numbers.index(shared)]
    return (
        f"not a volume: {len(same)} images at position {at:.3f} mm{everywhere} ({file_names(same)}); they differ in "
        f"{apart or 'nothing that is stated'}"
    )


def _shown_value(value: Any) -> str:
    if isinstance(value, tuple):
        return "\\".join(_shown_value(v) for v in value)
    return "none" if value is None else f"{value:.10g}" if isinstance(value, float) else str(value)


def row_and_column(image: Slice) -> tuple[Floats, Floats]:
    """Unit vectors along a row (columns grow) and along a column (rows grow)."""
    vectors = np.asarray(image.orientation, dtype=np.float64).reshape(2, 3)
    row, column = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return row, column


def normal_of(image: Slice) -> Floats:
    """Unit vector along which slices are stacked."""
    normal: Floats = np.cross(*row_and_column(image))
    return normal


def file_names(images: list[Any]) -> str:
    """Names of the files of some images, the first of them."""
    names = sorted({s.file.name for s in images})
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
