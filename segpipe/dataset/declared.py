"""What a dataset.json declares: channel names and labels, in nnU-Net's and the Decathlon's spelling."""

import re
from typing import Any

from segpipe.core.labels import Labels, Target
from segpipe.errors import DatasetError

_EXAMPLE = 'expected {"background": 0, "liver": 1, ...}, a region as a list of values'


def channel_names(declared: dict[str, Any]) -> tuple[str, ...]:
    """Channel names in order; empty when none are declared."""
    names = declared.get("channel_names") or declared.get("modality") or {}
    if isinstance(names, list):
        return tuple(str(n) for n in names)
    if not isinstance(names, dict) or not all(str(k).isdigit() for k in names):
        raise DatasetError(f'dataset.json: channel_names is {names!r}; expected {{"0": "T1", "1": "T2", ...}}')
    return tuple(str(names[k]) for k in sorted(names, key=int))


def read_labels_declaration(declared: dict[str, Any]) -> Labels | None:
    """Labels of a dataset; None when none are declared.

    A list of values is a region; then every entry is one, and ``regions_class_order`` gives the value that each is painted
    with, in the order of painting. ``ignore`` names the value of voxels that nobody labelled. The background is the entry of that
    name, else the one of value 0, whatever its name.

    Raises
    ------
    DatasetError
        If a value is not a non-negative integer or has two names, or regions have no usable order.
    """
    labels = declared.get("labels")
    if not labels:
        return None
    if not isinstance(labels, dict):
        raise DatasetError(f"dataset.json: labels is {labels!r}; {_EXAMPLE}")
    if all(str(k).isdigit() for k in labels) and all(isinstance(v, str) for v in labels.values()):
        labels = {name: int(value) for value, name in labels.items()}
    entries = {str(name): _values(str(name), value) for name, value in labels.items()}
    ignore = _single("ignore", entries.pop("ignore", None))
    named = "background" if "background" in entries else next((n for n, v in entries.items() if v == (0,)), "")
    background = _single("background", entries.pop(named, None))
    foreground = {v for values in entries.values() for v in values}
    if background is None:
        if 0 in foreground or ignore == 0:
            raise DatasetError(
                'dataset.json: 0 is the value of a label, and no background is declared; add "background" with its own value'
            )
        background = 0
    taken = {"background": background} | ({} if ignore is None else {"ignore": ignore})
    for name, value in taken.items():
        if value in foreground or (name == "ignore" and value == background):
            raise DatasetError(
                f"dataset.json: labels {labels} use the value of {name!r} ({value}) twice; give it its own"
            )
    if not entries:
        raise DatasetError(f"dataset.json: labels {labels} name no foreground; {_EXAMPLE}")
    regions = any(isinstance(value, list) for name, value in labels.items() if name in entries)
    n_entries = len(labels) + (not named)
    targets = _regions(entries, declared.get("regions_class_order")) if regions else _plain(entries)
    return Labels(targets=targets, regions=regions, background=background, ignore=ignore, n_entries=n_entries)


def _plain(entries: dict[str, tuple[int, ...]]) -> tuple[Target, ...]:
    values = {name: value for name, (value,) in entries.items()}
    if len(set(values.values())) < len(values):
        raise DatasetError(f"dataset.json: labels {values} give one value to two names; give each name its own")
    return tuple(
        Target(name=name, values=(value,), paint=value) for name, value in sorted(values.items(), key=lambda v: v[1])
    )


def _regions(entries: dict[str, tuple[int, ...]], order: Any) -> tuple[Target, ...]:
    if not isinstance(order, list) or len(order) != len(entries) or not all(isinstance(v, int) for v in order):
        raise DatasetError(
            f"dataset.json: regions_class_order is {order!r}; with regions, expected one value for each of "
            f"{', '.join(entries)} (what it is painted with, later ones over earlier ones){_suggestion(entries)}"
        )
    for (name, values), paint in zip(entries.items(), order, strict=True):
        if paint not in values:
            raise DatasetError(
                f"dataset.json: regions_class_order paints {name!r} ({list(values)}) as {paint}; expected one of its own values"
            )
    if len(set(order)) < len(order):
        raise DatasetError(f"dataset.json: regions_class_order is {order}; expected a value of its own for each region")
    return tuple(
        Target(name=name, values=values, paint=paint)
        for (name, values), paint in zip(entries.items(), order, strict=True)
    )


def _suggestion(entries: dict[str, tuple[int, ...]]) -> str:
    """An order that works when each declared region leaves a value to itself that later ones do not cover."""
    order = []
    names = list(entries)
    for number, name in enumerate(names):
        later = {v for other in names[number + 1 :] for v in entries[other]}
        own = [v for v in entries[name] if v not in later]
        if not own:
            return ""
        order.append(own[0])
    return f", such as {order}"


def _values(name: str, value: Any) -> tuple[int, ...]:
    values = [_whole(one) for one in (value if isinstance(value, list) else [value])]
    for one in values:
        if isinstance(one, bool) or not isinstance(one, int) or one < 0:
            raise DatasetError(
                f"dataset.json: label {name!r} has the value {value!r}; expected a non-negative integer, or a list of them"
            )
    if not values or len(set(values)) < len(values):
        raise DatasetError(f"dataset.json: label {name!r} has the values {value!r}; expected at least one, none twice")
    return tuple(values)


def _whole(value: Any) -> Any:
    """Return a whole number that is written as 1.0, "1" or "1.0" as an integer; anything else as it is."""
    if isinstance(value, str) and re.fullmatch(r"\s*\d+(\.0*)?\s*", value):
        return int(float(value))
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _single(name: str, values: tuple[int, ...] | None) -> int | None:
    if values is not None and len(values) != 1:
        raise DatasetError(f"dataset.json: label {name!r} has the values {list(values)}; expected a single one")
    return None if values is None else values[0]
