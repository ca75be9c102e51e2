"""Figures of the report, as PNG files and as data for a self-contained page."""

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from segpipe.geometry import canonical_orientation
from segpipe.io.formats import read_volume

_COLOURS = (
    "#e6194b",
    "#3cb44b",
    "#4363d8",
    "#f58231",
    "#911eb4",
    "#42d4f4",
    "#f032e6",
    "#bfef45",
    "#fabed4",
    "#469990",
)


def training_curve(log: Path, path: Path) -> Path:
    """Draw loss and patch Dice over the epochs of a training log."""
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    minutes = [line["elapsed_s"] / 60 for line in lines]
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    loss_axis = figure.add_subplot()
    loss_axis.plot(minutes, [line["train_loss"] for line in lines], color="#4363d8", label="training loss")
    loss_axis.set_xlabel("training time (minutes)")
    loss_axis.set_ylabel("loss (Dice + cross-entropy)")
    dice_axis = loss_axis.twinx()
    dice = [np.nan if line["mean_validation_dice"] is None else line["mean_validation_dice"] for line in lines]
    dice_axis.plot(minutes, dice, color="#3cb44b", label="Dice on validation patches")
    dice_axis.set_ylim(0, 1)
    dice_axis.set_ylabel("Dice")
    figure.legend(loc="upper center", ncols=2, bbox_to_anchor=(0.5, 0.99), frameon=False)
    return _save(figure, path)


def overlay(
    image: Path, prediction: Path, reference: Path, labels: dict[str, tuple[int, ...]], title: str, path: Path
) -> Path:
    """Draw three orthogonal slices through the largest cross-sections: reference as lines, prediction as colour."""
    grid = read_volume(reference).grid
    orientation = canonical_orientation(grid)
    voxels = orientation.apply(read_volume(image).array[0])
    predicted, referenced = (orientation.apply(read_volume(p).array[0]) for p in (prediction, reference))
    spacing = grid.reoriented(orientation).spacing_mm
    low, high = np.percentile(voxels, [1, 99])
    wanted = sorted({v for values in labels.values() for v in values})
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    for position, (axis, name) in enumerate(((0, "axial"), (1, "coronal"), (2, "sagittal"))):
        others = tuple(a for a in range(3) if a != axis)
        index = int(np.argmax((np.isin(referenced, wanted) | np.isin(predicted, wanted)).sum(axis=others)))
        panel = figure.add_subplot(1, 3, position + 1)
        aspect = spacing[others[0]] / spacing[others[1]]
        panel.imshow(
            _radiological(voxels, axis, index), cmap="gray", vmin=low, vmax=high, aspect=aspect, interpolation="nearest"
        )
        for number, values in enumerate(labels.values()):
            colour = _COLOURS[number % len(_COLOURS)]
            _fill(panel, np.isin(_radiological(predicted, axis, index), values), colour, aspect)
            mask = np.isin(_radiological(referenced, axis, index), values)
            if min(mask.shape) > 1 and mask.any() and not mask.all():
                panel.contour(mask, levels=[0.5], colors=[colour], linewidths=1.2)
        panel.set_title(name, fontsize=9)
        panel.set_axis_off()
    handles = [_patch(_COLOURS[n % len(_COLOURS)], name) for n, name in enumerate(labels)]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 6), frameon=False, fontsize=8)
    figure.suptitle(title, fontsize=10)
    return _save(figure, path)


def as_data_url(path: Path) -> str:
    """Return a PNG as a data URL."""
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def _radiological(array: NDArray[Any], axis: int, index: int) -> NDArray[Any]:
    """Slice of a canonical array with the head or the front up and the patient's right on the left."""
    plane = array.take(index, axis=axis)
    turned: NDArray[Any] = plane[::-1] if axis == 2 else plane[::-1, ::-1]
    return turned


def _fill(panel: Any, mask: NDArray[np.bool_], colour: str, aspect: float) -> None:
    rgba = np.zeros((*mask.shape, 4))
    rgba[mask] = [*(int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)), 0.4]
    panel.imshow(rgba, aspect=aspect, interpolation="nearest")


def _patch(colour: str, name: str) -> Any:
    from matplotlib.patches import Patch

    return Patch(color=colour, label=name)


def _save(figure: Figure, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    return path
