"""The regular volumes of one DICOM series: one, or several that an attribute tells apart (echo, b-value, time, phase, ...).

Where several images lie at each position, attributes are tried one after the other. An attribute separates volumes when every one of
its values has an image at every position; one that varies within a volume does not. The rest must then be regular, one by one.
"""

import re
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np

from segpipe.errors import IrregularSeriesError
from segpipe.io.dicom_times import HALF_A_DAY
from segpipe.io.notes import Note
from segpipe.io.series import Stack, regular_stack
from segpipe.io.slices import Slice, clusters, placed, positions_of, shared_place

# What is tried, in this order, with the beginning of the suffix of a file's name.
_SUFFIXES = {
    "EchoTime": "e",
    "component": "",
    "b-value": "b",
    "gradient direction": "d",
    "InversionTime": "ti",
    "FlipAngle": "fa",
    "RepetitionTime": "tr",
    "KVP": "kv",
    "ConvolutionKernel": "",
    "ASLContext": "",
    "ImageType": "",
    "TemporalPositionIdentifier": "t",
    "TemporalPositionTimeOffset": "t",
    "TriggerTime": "t",
    "CardiacPhase": "t",
    "RespiratoryPhase": "r",
    "FrameReferenceTime": "t",
    "AcquisitionNumber": "a",
    "AcquisitionTime": "t",
}
# Suffixes that show the value; the others count from 1, ascending.
_VALUES_SHOWN = ("b-value", "KVP")
# Times that may differ from slice to slice: images of one position are numbered by them. True: volume after volume, without overlap.
_TIMES = {"TriggerTime": False, "AcquisitionTime": True, "FrameReferenceTime": True}
# Differences that are rounding (ms, s/mm²); of other numbers, a ten-thousandth.
_TOLERANCES = {"EchoTime": (0.02, 1e-3), "b-value": (1.0, 1e-3)}
_TOLERANCE = (1e-6, 1e-4)
_EXACT = ("TemporalPositionIdentifier", "AcquisitionNumber", "AcquisitionTime")
_VECTOR_TOLERANCE = 1e-3
_NOT_STATED = {"b-value": 0.0}
_SHOWN = 4


@dataclass(frozen=True)
class Volume:
    """One regular volume of a series."""

    stack: Stack
    suffix: str = ""
    """What tells it apart from the others of its series, for a file's name: ``_e2``, ``_b1000``; empty for the only one."""


@dataclass(frozen=True)
class _Group:
    """Images that may be a volume, and the attributes by which they were separated from the others."""

    members: list[tuple[int, Slice]]
    """Number of the position, and the image."""
    labels: tuple[tuple[str, str], ...] = ()
    """Name of each attribute, and the part of the suffix."""

    @property
    def n_positions(self) -> int:
        return len({position for position, _ in self.members})

    @property
    def is_single(self) -> bool:
        """One image at each position."""
        return self.n_positions == len(self.members)


def volumes_of(slices: Iterable[Slice]) -> list[Volume]:
    """Return every regular volume of a series.

    Raises
    ------
    IrregularSeriesError
        If the images are no regular volumes, or no attribute tells them apart.
    """
    given = list(slices)
    images, places = placed(given)
    shared = shared_place(images, places)
    if not shared:
        return [Volume(regular_stack(given))]
    whole = _Group(list(zip(positions_of(places), images, strict=True)))
    groups = _separated([whole])
    if whole.n_positions == 1 or not all(g.is_single for g in groups):
        raise IrregularSeriesError(
            f"{shared}: no attribute separates them into whole volumes; export each volume as a series of its own"
        )
    numbers = {s.number for s in images if s.number is not None}
    by = ", ".join(dict.fromkeys(name for g in groups for name, _ in g.labels))
    volumes = []
    for group in groups:
        stack = regular_stack((s for _, s in group.members), numbers=numbers)
        note = Note("note", f"one of {len(groups)} volumes of its series, by {by}: {_suffix(group)[1:]}")
        volumes.append(Volume(replace(stack, notes=(note, *stack.notes)), _suffix(group)))
    return volumes


def only_volume(slices: Iterable[Slice]) -> Stack:
    """Return the stack of a series that holds one volume.

    Raises
    ------
    IrregularSeriesError
        If it is no regular volume, or several.
    """
    given = list(slices)
    volumes = volumes_of(given)
    if len(volumes) == 1:
        return volumes[0].stack
    names = ", ".join(v.suffix[1:] for v in volumes[:_SHOWN]) + (", ..." if len(volumes) > _SHOWN else "")
    raise IrregularSeriesError(
        f"{shared_place(*placed(given))}: these are {len(volumes)} volumes of {len(volumes[0].stack.slices)} slices ({names}); "
        "`segpipe convert` writes each as a file of its own"
    )


def _suffix(group: _Group) -> str:
    return "".join(f"_{label}" for _, label in group.labels)


def _separated(groups: list[_Group]) -> list[_Group]:
    names = list(_SUFFIXES)
    names += dict.fromkeys(k for g in groups for _, s in g.members for k in s.kinds if k.startswith("dimension "))
    for name in names:
        groups = [part for group in groups for part in _parts(group, name)]
    return groups


def _parts(group: _Group, name: str) -> list[_Group]:
    """Separate a group by an attribute; the group itself where the attribute does not tell volumes apart."""
    if group.is_single:
        return [group]
    values = _moments(group) if name == "AcquisitionTime" else _stated(group, name)
    keys = _keys(name, values)
    if not _every_key_everywhere(group, keys):
        keys = _ranks(group, values, apart=_TIMES[name]) if name in _TIMES else []
        if not _every_key_everywhere(group, keys):
            return [group]
    by_key: dict[Hashable, list[tuple[int, Slice]]] = defaultdict(list)
    for key, member in zip(keys, group.members, strict=True):
        by_key[key].append(member)
    ordered = sorted(by_key.items(), key=lambda item: _order(item[0], item[1]))
    labels = _labels(name, [key for key, _ in ordered])
    return [
        _Group(members, (*group.labels, (name, label))) for (_, members), label in zip(ordered, labels, strict=True)
    ]


def _stated(group: _Group, name: str) -> list[Any]:
    return [s.kinds.get(name, _NOT_STATED.get(name)) for _, s in group.members]


def _moments(group: _Group) -> list[float | None]:
    """Date and time of each image as one number; None for all where their order is not known: they may have passed midnight."""
    times, dates = _stated(group, "AcquisitionTime"), _stated(group, "AcquisitionDate")
    by_date: dict[float | None, list[float]] = defaultdict(list)
    for time, day in zip(times, dates, strict=True):
        by_date[day] += [] if time is None else [time]
    # A series takes no twelve hours: one that seems to has lost its dates, or has one for all.
    if (None in by_date and len(by_date) > 1) or any(np.ptp(t or [0]) > HALF_A_DAY for t in by_date.values()):
        return [None] * len(times)
    days = {day: number for number, day in enumerate(sorted(d for d in by_date if d is not None))}
    return [None if t is None else days.get(d, 0) * 1e6 + t for t, d in zip(times, dates, strict=True)]


def _keys(name: str, values: list[Any]) -> list[Hashable]:
    """Equal for values that differ by rounding alone."""
    if any(isinstance(v, float) for v in values):
        absolute, relative = (0.0, 0.0) if name in _EXACT else _TOLERANCES.get(name, _TOLERANCE)
        starts = clusters((v for v in values if isinstance(v, float)), absolute, relative)
        return [starts[bisect_right(starts, v) - 1] if isinstance(v, float) else None for v in values]
    if name != "gradient direction":
        return list(values)
    first: list[tuple[float, ...]] = []
    keys: list[Hashable] = []
    for v in values:
        known = next((f for f in first if v and np.abs(np.subtract(f, v)).max() <= _VECTOR_TOLERANCE), v)
        first += [] if known is None or known in first else [known]
        keys.append(known)
    return keys


def _every_key_everywhere(group: _Group, keys: list[Hashable]) -> bool:
    """Tell whether there are several values, each with an image at every position."""
    positions: dict[Hashable, set[int]] = defaultdict(set)
    for key, (position, _) in zip(keys, group.members, strict=bool(keys)):
        positions[key].add(position)
    return len(positions) > 1 and all(len(p) == group.n_positions for p in positions.values())


def _ranks(group: _Group, values: list[Any], *, apart: bool) -> list[Hashable]:
    """Number the images of each position by a time; nothing where times are missing, equal, or not as many everywhere."""
    by_position: dict[int, list[float]] = defaultdict(list)
    for value, (position, _) in zip(values, group.members, strict=True):
        if value is None:
            return []
        by_position[position].append(value)
    times = [sorted(found) for found in by_position.values()]
    if len({len(t) for t in times}) > 1 or any(a == b for t in times for a, b in pairwise(t)):
        return []
    columns = np.array(times)
    if apart and (columns[:, :-1].max(axis=0) >= columns[:, 1:].min(axis=0)).any():
        return []
    return [float(sorted(by_position[p]).index(v)) for v, (p, _) in zip(values, group.members, strict=True)]


def _order(key: Hashable, members: list[tuple[int, Slice]]) -> tuple[float, float, str]:
    """Numbers ascending; others as the scanner numbered their images."""
    first = min((s.number for _, s in members if s.number is not None), default=0)
    return (key if isinstance(key, float) else -1.0, float(first), str(key))


def _labels(name: str, keys: list[Any]) -> list[str]:
    """Part of the file's name for each value."""
    if name in _VALUES_SHOWN:
        shown = [f"{_SUFFIXES[name]}{key or 0:.0f}" for key in keys]
    elif name == "ImageType":
        words = Counter(word for key in keys for word in set(key or ()))
        shown = [_word("_".join(w for w in key or () if words[w] < len(keys))) for key in keys]
    elif _SUFFIXES.get(name) == "":
        shown = [_word(str(key)) for key in keys]
    else:
        prefix = _SUFFIXES.get(name) or _word(name.removeprefix("dimension "))
        shown = [f"{prefix}{n}" for n in range(1, len(keys) + 1)]
    if len(set(shown)) == len(shown) and all(shown):
        return shown
    return [f"{_SUFFIXES.get(name) or 'v'}{n}" for n in range(1, len(keys) + 1)]


def _word(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")
