"""The stage: a folder of segmentations in, cleaned ones out."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from segpipe.core.given import Given, PassedOver
from segpipe.core.labels import Labels, smallest_dtype
from segpipe.core.whole import sweep
from segpipe.dataset.entries import absence_of, entries_of
from segpipe.dataset.load import read_labels
from segpipe.errors import CaseError, DatasetError, SegpipeError
from segpipe.execution import processes
from segpipe.execution.memory import BYTES_A_LABEL_VOXEL
from segpipe.execution.processes import Workers
from segpipe.io.formats import most_voxels, output_ending, stem_of, write_labels_like
from segpipe.postprocessing.apply import apply_rules, require_known
from segpipe.postprocessing.schema import EVERYTHING, Rule


@dataclass(frozen=True)
class Cleaned:
    """What became of the segmentations of a folder."""

    changed: dict[str, int]
    """Changed voxels of each."""
    failed: dict[str, str]
    """Those that failed, with the reasons."""
    values: Given
    """Values that no label of the model has: they stay as they are."""


@dataclass(frozen=True)
class _Task:
    source: Path
    target: Path
    rules: tuple[Rule, ...]
    labels: Labels | None


def apply_to_folder(
    predictions: Path,
    output: Path,
    rules: tuple[Rule, ...],
    labels: Labels | None,
    *,
    workers: Workers = None,
    on_case: Callable[[str], None] = lambda _: None,
) -> Cleaned:
    """Apply rules to every segmentation of a folder.

    Raises
    ------
    DatasetError
        If there is none.
    SegpipeError
        If an output is there already, or a rule names a label that there is not.
    """
    files = [f for f in entries_of(predictions).images if not f.is_dir()] if predictions.is_dir() else []
    stems = {stem_of(f) for f in files}
    # What `predict --save-uncertainty` wrote beside a segmentation is none.
    files = [f for f in files if stem_of(f).removesuffix("_uncertainty") not in stems - {stem_of(f)}]
    if not files:
        raise DatasetError(f"{predictions}: no segmentation found; expected a folder of image files")
    if labels is not None:
        require_known(rules, labels)
    elif unknown := next((r.label for r in rules if not _is_number(r.label)), None):
        raise SegpipeError(f"the rules name the label {unknown!r}; give --model with the model whose labels are meant")
    targets = [output / f"{stem_of(f)}{output_ending(f)}" for f in files]
    if there := next((t for t in targets if t.exists()), None):
        raise SegpipeError(f"{there}: is there already; choose a new folder")
    sweep(output)
    failed = {f.name: why for f in files if (why := absence_of(f)) is not None}
    files = [f for f in files if f.name not in failed]
    tasks = [_Task(f, output / f"{stem_of(f)}{output_ending(f)}", rules, labels) for f in files]
    changed = {}
    n_values, alone = 0, []
    for outcome in processes.map_cases(
        _clean, tasks, workers=workers, bytes_each=BYTES_A_LABEL_VOXEL * most_voxels(files)
    ):
        case = outcome.item.source.name
        if outcome.value is None:
            failed[case] = outcome.failure or ""
        else:
            changed[case], values = outcome.value
            n_values += len(values)
            alone += [PassedOver(what=case, why=_why_not(v, labels)) for v in values if _why_not(v, labels)]
        on_case(case)
    return Cleaned(changed, failed, Given(kind="values in segmentations", n_given=n_values, passed_over=tuple(alone)))


def _why_not(value: int, labels: Labels | None) -> str:
    if labels is None or value in labels.values:
        return ""
    return f"value {value} belongs to no label of the model and stays as it is; its labels have {list(labels.values)}"


def _clean(task: _Task) -> tuple[int, list[int]]:
    """Clean a segmentation; returns the number of changed voxels, and the values that it held."""
    volume = read_labels(stem_of(task.source), task.source, task.labels)
    before = volume.array[0]
    if not np.issubdtype(before.dtype, np.integer):
        if not (before == np.round(before)).all():
            raise CaseError(f"{task.source}: holds values that are no whole numbers; expected a segmentation")
        if before.min() < 0 or before.max() > np.iinfo(np.uint32).max:
            raise CaseError(
                f"{task.source}: holds {before.min():g} to {before.max():g}; expected label values from 0 on"
            )
        before = before.astype(smallest_dtype(int(before.max())))
    labels = task.labels or _named_by_number(before, task.rules)
    after = apply_rules(before, volume.grid.spacing_mm, labels, task.rules)
    write_labels_like(task.source, task.target, after)
    return int((before != after).sum()), [int(v) for v in np.unique(before)]


def _named_by_number(array: np.ndarray, rules: tuple[Rule, ...]) -> Labels:
    """Labels ``label_1``, ``label_2``, ...: those that are found, and those that rules name."""
    values = {int(v) for v in np.unique(array) if v > 0}
    values |= {int(r.label.removeprefix("label_")) for r in rules if r.label != EVERYTHING}
    return Labels.plain({f"label_{v}": v for v in sorted(values)})


def _is_number(label: str) -> bool:
    return label == EVERYTHING or re.fullmatch(r"label_\d+", label) is not None
