"""What a dataset.json declares: channel names and labels, in nnU-Net's and the Decathlon's spelling."""

import json
import re
from collections import Counter
from typing import Any

from segpipe.core.labels import Labels, Target
from segpipe.core.painting import LARGEST_VALUE, painting_problems, working_order
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


def read_labels_declaration(declared: dict[str, Any], *, any_order: bool = False) -> Labels | None:
    """Labels of a dataset; None when none are declared.

    A list of values is a region; then every entry is one, and ``regions_class_order`` gives the value that each is painted
    with, in the order of painting. ``ignore`` names the value of voxels that nobody labelled. The background is the entry of that
    name, else the one of value 0, whatever its name.

    A declaration is usable if painting the references' own regions gives these regions back. Where another order, or other values, do
    that, the declaration is refused with them. Where none do (regions that overlap without one lying in the other), the labels are
    ``by_set``: each set of regions that a value stands for is written as that value.

    Parameters
    ----------
    declared : dict
        Content of a dataset.json.
    any_order : bool
        Accept an order that loses regions, or none: for masks that are scored, not painted.

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
        _require_own_names(labels)
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
    order = declared.get("regions_class_order")
    if regions and order is None and any_order:
        order = [values[0] for values in entries.values()]
    targets = _regions(entries, order) if regions else _plain(entries)
    problems = painting_problems(targets)
    usable = working_order(targets) if problems else targets
    if problems and usable is not None and not any_order:
        raise DatasetError(
            f"dataset.json: regions are painted in the order of labels, with the values of regions_class_order, later ones over earlier "
            f"ones, and this order loses some: {'; '.join(problems)}. Use {_written(usable)}"
        )
    return Labels(
        targets=targets,
        regions=regions,
        background=background,
        ignore=ignore,
        n_entries=n_entries,
        by_set=usable is None,
    )


def _require_own_names(labels: dict[str, str]) -> None:
    """Raise if two values have one name."""
    name, n = Counter(labels.values()).most_common(1)[0]
    if n > 1:
        values = ", ".join(value for value, other in labels.items() if other == name)
        raise DatasetError(
            f"dataset.json: labels: the values {values} have one name, {name!r}; give each value its own name"
        )


def _plain(entries: dict[str, tuple[int, ...]]) -> tuple[Target, ...]:
    values = {name: value for name, (value,) in entries.items()}
    if len(set(values.values())) < len(values):
        raise DatasetError(f"dataset.json: labels {values} give one value to two names; give each name its own")
    return tuple(
        Target(name=name, values=(value,), paint=value) for name, value in sorted(values.items(), key=lambda v: v[1])
    )


def _regions(entries: dict[str, tuple[int, ...]], declared: Any) -> tuple[Target, ...]:
    order = [_whole(value) for value in declared] if isinstance(declared, list) else []
    if len(order) != len(entries) or None in order:
        raise DatasetError(
            f"dataset.json: regions_class_order is {declared!r}; with regions, expected one value for each of "
            f"{', '.join(entries)} (what it is painted with, later ones over earlier ones){_suggestion(entries)}"
        )
    for (name, values), paint in zip(entries.items(), order, strict=True):
        if paint not in values:
            raise DatasetError(
                f"dataset.json: regions_class_order paints {name!r} ({list(values)}) as {paint}; expected one of its own values"
                f"{_suggestion(entries)}"
            )
    return tuple(
        Target(name=name, values=values, paint=paint)
        for (name, values), paint in zip(entries.items(), order, strict=True)
    )


def _suggestion(entries: dict[str, tuple[int, ...]]) -> str:
    """An order that works, where there is one."""
    undecided = [Target(name=name, values=values, paint=values[0]) for name, values in entries.items()]
    usable = working_order(undecided)
    return "" if usable is None else f", such as {_written(usable)}"


def _written(targets: tuple[Target, ...]) -> str:
    """Regions in their order, as dataset.json has them."""
    labels = {t.name: list(t.values) for t in targets}
    return f'"labels": {json.dumps(labels)}, "regions_class_order": {[t.paint for t in targets]}'


def _values(name: str, value: Any) -> tuple[int, ...]:
    values = [_whole(one) for one in (value if isinstance(value, list) else [value])]
    whole = tuple(one for one in values if one is not None)
    if len(whole) < len(values):
        raise DatasetError(
            f"dataset.json: label {name!r} has the value {value!r}; expected a non-negative integer, or a list of them"
        )
    if not whole or len(set(whole)) < len(whole):
        raise DatasetError(f"dataset.json: label {name!r} has the values {value!r}; expected at least one, none twice")
    if max(whole) > LARGEST_VALUE:
        raise DatasetError(
            f"dataset.json: label {name!r} has the value {max(whole)}; a mask holds at most {LARGEST_VALUE}: give the label a smaller value"
        )
    return whole


def _whole(value: Any) -> int | None:
    """A non-negative integer, also one that a tool wrote as 1.0 or "1"; None for anything else."""
    if isinstance(value, str) and re.fullmatch(r"[0-9]+(\.0*)?", value.strip()):
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0 or value != value // 1:
        return None
    return int(value)


def _single(name: str, values: tuple[int, ...] | None) -> int | None:
    if values is not None and len(values) != 1:
        raise DatasetError(f"dataset.json: label {name!r} has the values {list(values)}; expected a single one")
    return None if values is None else values[0]
