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


def segments_of(name: str, keys: dict[str, str]) -> list[Segment]:
    """Read segments from the keys of a file; none where there are no such keys.

    Files of before version 4.11 state neither layer nor value: each segment has a layer of its own, and the value 1.

    Raises
    ------
    CaseError
        If a layer or a value is no number.
    """
    numbers = sorted({int(match[1]) for key in keys if (match := re.match(r"Segment(\d+)_", key))})
    return [
        Segment(
            name=keys.get(f"Segment{n}_Name", keys.get(f"Segment{n}_ID", f"segment {n}")).strip(),
            layer=_number(name, keys, f"Segment{n}_Layer", place),
            value=_number(name, keys, f"Segment{n}_LabelValue", 1),
        )
        for place, n in enumerate(numbers)
    ]


def _number(name: str, keys: dict[str, str], key: str, unless_stated: int) -> int:
    text = keys.get(key, str(unless_stated)).strip()
    if not text.isdecimal():
        raise CaseError(f"label {name}: {key} is {text!r}; expected a number: save it again in 3D Slicer")
    return int(text)


def joined_segments(
    case_id: str, name: str, layers: NDArray[Any], segments: list[Segment], declared: Labels | None
) -> tuple[NDArray[Any], tuple[Note, ...]]:
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
    by_name = declared is not None and bool(_declared_names(segments, declared))
    members = _by_declared_names(where, segments, declared) if declared and by_name else _by_numbers(where, segments)
    if not by_name and len(layers) == 1:
        # Its numbers are the labels already, those that no segment describes among them.
        return layers[0], (_note(members, by_name=False),)
    _require_described(where, layers, segments)
    background = 0 if declared is None else declared.background
    joined = np.full(layers.shape[1:], background, dtype=smallest_dtype(max([background, *members.values()])))
    n_here = np.zeros(layers.shape[1:], dtype=np.uint16)
    for layer in layers:
        n_here += layer != 0
    for number, layer in enumerate(layers):
        here = [s for s in segments if s.layer == number]
        alone = layer[(layer != 0) & (n_here == 1)]
        _require_values(where, alone, here, members)
        table = np.zeros(max([0, *(s.value for s in here)]) + 1, dtype=joined.dtype)
        for segment in here:
            table[segment.value] = members.get(frozenset({segment.name}), 0)
        joined[(layer != 0) & (n_here == 1)] = table[alone.astype(np.intp)]
    shared = n_here > 1
    if shared.any():
        joined[shared] = _overlap_values(where, layers[:, shared], segments, members, declared)
    return joined, (_note(members, by_name=by_name),)


def _require_values(
    where: str, alone: NDArray[Any], segments: list[Segment], members: dict[frozenset[str], int]
) -> None:
    """Refuse voxels of one segment alone for which no value stands: a region, of which several values are parts."""
    for segment in segments:
        if frozenset({segment.name}) not in members and (n_voxels := int((alone == segment.value).sum())):
            raise CaseError(
                f"{where}: {n_voxels} voxel(s) belong to {segment.name!r} alone, for which no declared value stands; "
                "declare a value that belongs to this region alone, or correct the segments"
            )


def _overlap_values(
    where: str,
    columns: NDArray[Any],
    segments: list[Segment],
    members: dict[frozenset[str], int],
    declared: Labels | None,
) -> NDArray[np.int64]:
    """Return, for voxels (C, N) of several segments, the value that belongs to all their regions and to no other."""
    found, which, counts = np.unique(columns, axis=1, return_inverse=True, return_counts=True)
    names = {(s.layer, s.value): s.name for s in segments}
    values = np.zeros(found.shape[1], dtype=np.int64)
    for number, column in enumerate(found.T):
        here = frozenset(names[layer, int(value)] for layer, value in enumerate(column) if value)
        if here not in members:
            regions = declared is not None and declared.regions
            raise CaseError(
                f"{where}: the segments {', '.join(sorted(map(repr, here)))} overlap in {int(counts[number])} voxel(s), and a voxel has "
                "one value; remove the overlap in 3D Slicer (export the segmentation as labelmap)"
                + ("" if regions else ", or declare regions with a value for the overlap in dataset.json")
            )
        values[number] = members[here]
    return values[which.reshape(-1)]


def _by_numbers(where: str, segments: list[Segment]) -> dict[frozenset[str], int]:
    """Values of segments by the numbers in the file."""
    if len({s.value for s in segments}) < len(segments):
        shown = ", ".join(f"{s.name} = {s.value} in layer {s.layer}" for s in segments)
        raise CaseError(
            f"{where} has layers in which the same value stands for several segments ({shown}); declare the labels in dataset.json "
            "by the names of the segments"
        )
    return {frozenset({s.name}): s.value for s in segments}


def _by_declared_names(where: str, segments: list[Segment], declared: Labels) -> dict[frozenset[str], int]:
    """The declared value that belongs to each set of segments, and to no other declared region."""
    known = _declared_names(segments, declared)
    aside = {"background": declared.background, "ignore": declared.ignore}
    set_aside = {s.name: v for s in segments if s.name not in known and (v := aside.get(_plain(s.name))) is not None}
    segments = [s for s in segments if s.name not in set_aside]
    unknown = [s.name for s in segments if s.name not in known]
    if unknown or len(set(known.values())) < len(segments):
        raise CaseError(
            f"{where} has the segments {', '.join(repr(s.name) for s in segments)}; declared are {', '.join(declared.names)}, each once: "
            "rename or remove the others in 3D Slicer, or declare them"
        )
    by_target = {target: segment for segment, target in known.items()}
    sets: dict[frozenset[str], list[int]] = {}
    for value in {v for t in declared.targets for v in t.values}:
        targets = [t.name for t in declared.targets if value in t.values]
        if all(t in by_target for t in targets):
            sets.setdefault(frozenset(by_target[t] for t in targets), []).append(value)
    # What several values share is one region: it cannot be known which of them a voxel has.
    one = {names: values[0] for names, values in sets.items() if len(values) == 1}
    return {**one, **{frozenset({name}): value for name, value in set_aside.items()}}


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


def _note(members: dict[frozenset[str], int], *, by_name: bool) -> Note:
    shown = ", ".join(f"{' and '.join(sorted(names))} = {value}" for names, value in members.items())
    if by_name:
        return Note("note", f"segments of 3D Slicer take the declared values of their names: {shown}")
    return Note(
        "note",
        f"segments of 3D Slicer have the values of the file: {shown}; declare their names in dataset.json to have the names decide",
    )
