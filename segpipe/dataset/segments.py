"""Segmentations of 3D Slicer (``.seg.nrrd``): segments in layers, by name, joined to one value per voxel.

Slicer numbers the segments of each file in the order in which they were drawn. Where dataset.json declares their names, the names decide;
else the numbers do. Source of the keys: 3D Slicer, "Segmentations", section "Segmentation file format".
"""

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segpipe.core.labels import Labels, smallest_dtype
from segpipe.errors import CaseError
from segpipe.io.notes import Note


@dataclass(frozen=True)
class Segment:
    """A structure as Slicer stores it."""

    name: str
    layer: int
    """Channel of the file that holds it."""
    value: int
    """Its value there (``LabelValue``)."""


def segments_of(keys: dict[str, str]) -> list[Segment]:
    """Read segments from the keys of a file; none where there are no such keys.

    Files of before version 4.11 state neither layer nor value: each segment has a layer of its own, and the value 1.
    """
    numbers = sorted({int(match[1]) for key in keys if (match := re.match(r"Segment(\d+)_", key))})
    return [
        Segment(
            name=keys.get(f"Segment{n}_Name", keys.get(f"Segment{n}_ID", f"segment {n}")).strip(),
            layer=int(keys.get(f"Segment{n}_Layer", place)),
            value=int(keys.get(f"Segment{n}_LabelValue", 1)),
        )
        for place, n in enumerate(numbers)
    ]


def joined_segments(
    case_id: str, name: str, layers: NDArray[Any], segments: list[Segment], declared: Labels | None
) -> tuple[NDArray[np.unsignedinteger], tuple[Note, ...]]:
    """Join segments to one value per voxel.

    Parameters
    ----------
    case_id, name : str
        Case and file, for messages.
    layers : ndarray, shape (C, Z, Y, X)
        Voxels of the file.
    segments : list of Segment
    declared : Labels, optional
        The dataset's labels; a segment of a declared name is that label, whatever its number is.

    Returns
    -------
    joined : ndarray, shape (Z, Y, X)
        Label values; 0, or the declared background, outside all segments.
    notes : tuple of Note
        Which segment became which value.

    Raises
    ------
    CaseError
        If segments overlap in a way that no single value expresses, or it is not known what they stand for.
    """
    where = f"case {case_id!r}: label {name}"
    _require_layers(where, layers, segments)
    background = 0 if declared is None else declared.background
    members = _members(where, segments, declared)
    found = np.zeros(layers.shape[1:], dtype=np.int64)
    # The set of segments at a voxel, as bits.
    for bit, segment in enumerate(segments):
        found |= (layers[segment.layer] == segment.value).astype(np.int64) << bit
    _require_described(where, layers, segments)
    joined = np.full(layers.shape[1:], background, dtype=smallest_dtype(max([background, *members.values()])))
    values = {frozenset(names): value for names, value in members.items()}
    for bits in np.unique(found):
        if bits == 0:
            continue
        here = frozenset(s.name for number, s in enumerate(segments) if int(bits) >> number & 1)
        if here not in values:
            raise CaseError(_overlap(where, here, int((found == bits).sum()), declared))
        joined[found == bits] = values[here]
    return joined, (_note(segments, declared, members),)


def _members(where: str, segments: list[Segment], declared: Labels | None) -> dict[tuple[str, ...], int]:
    """The value that stands for each set of segments."""
    names = [s.name for s in segments]
    if len(set(names)) < len(names):
        raise CaseError(f"{where} has several segments of one name ({', '.join(names)}); give each its own name")
    if declared is None or not (known := _declared_names(segments, declared)):
        values = [s.value for s in segments]
        if len(set(values)) < len(values):
            shown = ", ".join(f"{s.name} = {s.value} in layer {s.layer}" for s in segments)
            raise CaseError(
                f"{where} has layers in which the same value stands for several segments ({shown}); declare the labels in dataset.json "
                "by the names of the segments"
            )
        return {(s.name,): s.value for s in segments}
    unknown = [s.name for s in segments if s.name not in known]
    if unknown:
        raise CaseError(
            f"{where} has the segment(s) {', '.join(map(repr, unknown))}; declared are {', '.join(declared.names)}: "
            "rename or remove them in 3D Slicer, or declare them"
        )
    by_target = {target: segment for segment, target in known.items()}
    members: dict[tuple[str, ...], int] = {}
    twice = set()
    for value in sorted({v for t in declared.targets for v in t.values}):
        targets = [t.name for t in declared.targets if value in t.values]
        if not all(t in by_target for t in targets):
            continue
        key = tuple(by_target[t] for t in targets)
        twice |= {key} & set(members)
        members.setdefault(key, value)
    # What several values share is one region: it cannot be known which of them a voxel has.
    return {key: value for key, value in members.items() if key not in twice}


def _declared_names(segments: list[Segment], declared: Labels) -> dict[str, str]:
    """Name of the declared target of each segment that has one."""
    targets = {_plain(t.name): t.name for t in declared.targets}
    return {s.name: targets[_plain(s.name)] for s in segments if _plain(s.name) in targets}


def _plain(name: str) -> str:
    """A name without what people write in several ways: capitals, blanks, hyphens, underscores."""
    return re.sub(r"[\s_-]+", "", name).casefold()


def _require_layers(where: str, layers: NDArray[Any], segments: list[Segment]) -> None:
    missing = [s for s in segments if not 0 <= s.layer < len(layers)]
    if missing:
        raise CaseError(
            f"{where}: segment {missing[0].name!r} should be in layer {missing[0].layer}, the file has {len(layers)} layer(s); "
            "save it again in 3D Slicer"
        )


def _require_described(where: str, layers: NDArray[Any], segments: list[Segment]) -> None:
    """Refuse values that no segment describes: it is not known what they are."""
    for number, layer in enumerate(layers):
        known = [0, *(s.value for s in segments if s.layer == number)]
        others = np.setdiff1d(np.unique(layer), known)
        if others.size:
            raise CaseError(
                f"{where} holds the value(s) {others[:8].tolist()} in layer {number}, which no segment of the file describes; "
                f"expected {known}: save it again in 3D Slicer"
            )


def _overlap(where: str, here: frozenset[str], n_voxels: int, declared: Labels | None) -> str:
    names = ", ".join(sorted(map(repr, here)))
    if len(here) == 1:
        return (
            f"{where}: {n_voxels} voxel(s) belong to {names} alone, for which no declared value stands; "
            "declare a value that belongs to this region alone, or correct the segments"
        )
    regions = (
        ""
        if declared is not None and declared.regions
        else " (or declare regions with a value for this overlap in dataset.json)"
    )
    return (
        f"{where}: the segments {names} overlap in {n_voxels} voxel(s), and a voxel has one value; "
        f"remove the overlap in 3D Slicer: export the segmentation as labelmap{regions}"
    )


def _note(segments: list[Segment], declared: Labels | None, members: dict[tuple[str, ...], int]) -> Note:
    if declared is not None and _declared_names(segments, declared):
        shown = ", ".join(f"{' and '.join(names)} = {value}" for names, value in members.items())
        return Note("note", f"segments of 3D Slicer take the declared values of their names: {shown}")
    shown = ", ".join(f"{s.name} = {s.value}" for s in segments)
    return Note(
        "note",
        f"segments of 3D Slicer have the values of the file: {shown}; declare their names in dataset.json to have the names decide",
    )
