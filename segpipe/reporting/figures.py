"""Figures of the report, as PNG files and as data for a self-contained page."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from segpipe.core.artefact import json_lines
from segpipe.core.geometry import canonical_orientation
from segpipe.core.labels import Labels
from segpipe.core.regular import read_bytes, read_text
from segpipe.dataset.grids import labels_exactly_on
from segpipe.dataset.load import read_label_file
from segpipe.io.formats import is_picture, read_volume
from segpipe.losses.spec import LossTerm
from segpipe.reporting.drawn import legend_name, save

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


# Of more labels, only the mean is drawn.
_MOST_CURVES = 8
_DPI = 110
_AXIS_CHARACTERS = 36
"""Longest line of text beside an axis of the training curve."""


def training_curve(log: Path, names: tuple[str, ...], loss: Sequence[LossTerm], path: Path) -> Path:
    """Draw loss, and patch Dice of each label and on average, over the epochs of a training log.

    Parameters
    ----------
    log : Path
        JSON lines, one per epoch.
    names : tuple of str
        Labels, in the order of the log's Dice.
    loss : sequence of LossTerm
        Terms of the loss, as the plan holds them.
    path : Path
        Picture to write.
    """
    lines = json_lines(read_text(log), "elapsed_s", "train_loss", "validation_dice", "mean_validation_dice")
    guided = any("guide" in line for line in lines)
    minutes = [line["elapsed_s"] / 60 for line in lines]
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    loss_axis = figure.add_subplot()
    loss_axis.plot(minutes, [line["train_loss"] for line in lines], color="#4363d8", label="training loss")
    loss_axis.set_xlabel("training time (minutes)")
    loss_axis.set_ylabel(fill(f"loss ({loss_words(loss, guided=guided)})", _AXIS_CHARACTERS))
    dice_axis = loss_axis.twinx()
    if len(names) <= _MOST_CURVES:
        for number, name in enumerate(names):
            dice = [np.nan if (d := line["validation_dice"][number]) is None else d for line in lines]
            colour = _COLOURS[number % len(_COLOURS)]
            dice_axis.plot(minutes, dice, color=colour, linewidth=0.8, alpha=0.7, label=f"Dice {name}")
    mean = [np.nan if line["mean_validation_dice"] is None else line["mean_validation_dice"] for line in lines]
    dice_axis.plot(minutes, mean, color="black", label="mean Dice of patches")
    dice_axis.set_ylim(0, 1)
    dice_axis.set_ylabel("Dice")
    figure.legend(loc="outside upper center", ncols=4, frameon=False, fontsize=8)
    return save(figure, path, _DPI)


def loss_words(terms: Sequence[LossTerm], *, guided: bool = False) -> str:
    """Name the terms of a loss as recipes do, with weights other than 1; ``guided`` adds the terms of a distillation."""
    named = [term.name if term.weight == 1 else f"{term.weight:g} {term.name}" for term in terms]
    return " + ".join([*named, "distillation"] if guided else named)


@dataclass(frozen=True)
class _Scan:
    """What an overlay is drawn of: arrays (Z, Y, X) in canonical orientation."""

    voxels: NDArray[Any]
    predicted: NDArray[Any]
    referenced: NDArray[Any]
    spacing_mm: tuple[float, float, float]
    is_picture: bool

    def plane(self, array: NDArray[Any], axis: int, index: int) -> NDArray[Any]:
        """One plane as it is looked at: a scan with the head or the front up and the right on the left, a picture as it is."""
        cut: NDArray[Any] = array.take(index, axis=axis)
        if self.is_picture:
            return cut
        return cut[::-1] if axis == 2 else cut[::-1, ::-1]


def overlay(image: Path, prediction: Path, reference: Path, labels: Labels, title: str, path: Path) -> Path:
    """Draw orthogonal planes through the largest cross-sections: reference as lines, prediction as colour; a single slice as it is."""
    scanned = read_volume(image)
    orientation = canonical_orientation(scanned.grid)
    predicted, referenced = (
        orientation.apply(labels_exactly_on(title, "image", scanned.grid, name, read_label_file(title, file, labels)))
        for name, file in (("prediction", prediction), ("reference", reference))
    )
    scan = _Scan(
        orientation.apply(scanned.array[0]),
        predicted,
        referenced,
        scanned.grid.reoriented(orientation).spacing_mm,
        is_picture(image),
    )
    shape = scan.voxels.shape
    planes = [(a, n) for a, n in enumerate(("axial", "coronal", "sagittal")) if min(np.delete(shape, a)) > 1]
    width = 10 if len(planes) > 1 else 5
    figure = Figure(figsize=(width, 3.8 if len(planes) > 1 else 5.4), layout="constrained")
    limits = np.percentile(scan.voxels, [1, 99])
    for position, (axis, name) in enumerate(planes):
        panel = figure.add_subplot(1, len(planes), position + 1)
        _draw_plane(panel, scan, axis, labels, (float(limits[0]), float(limits[1])))
        panel.set_title("" if scan.is_picture else name, fontsize=9)
        panel.set_axis_off()
    handles = [_patch(_COLOURS[n % len(_COLOURS)], name) for n, name in enumerate(labels.names)]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 6), frameon=False, fontsize=8)
    figure.suptitle(title, fontsize=10)
    return save(figure, path, _DPI)


def _draw_plane(panel: Any, scan: _Scan, axis: int, labels: Labels, limits: tuple[float, float]) -> None:
    others = tuple(a for a in range(3) if a != axis)
    wanted = labels.values[1:]
    index = int(np.argmax((np.isin(scan.referenced, wanted) | np.isin(scan.predicted, wanted)).sum(axis=others)))
    aspect = scan.spacing_mm[others[0]] / scan.spacing_mm[others[1]]
    voxels, predicted, referenced = (
        scan.plane(array, axis, index) for array in (scan.voxels, scan.predicted, scan.referenced)
    )
    panel.imshow(voxels, cmap="gray", vmin=limits[0], vmax=limits[1], aspect=aspect, interpolation="nearest")
    for number, target in enumerate(labels.targets):
        colour = _COLOURS[number % len(_COLOURS)]
        _fill(panel, np.isin(predicted, target.values), colour, aspect)
        mask = np.isin(referenced, target.values)
        if mask.any() and not mask.all():
            panel.contour(mask, levels=[0.5], colors=[colour], linewidths=1.2)


def as_data_url(path: Path) -> str:
    """Return a PNG as a data URL."""
    return "data:image/png;base64," + base64.b64encode(read_bytes(path)).decode()


def _fill(panel: Any, mask: NDArray[np.bool_], colour: str, aspect: float) -> None:
    rgba = np.zeros((*mask.shape, 4))
    rgba[mask] = [*(int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)), 0.4]
    panel.imshow(rgba, aspect=aspect, interpolation="nearest")


def _patch(colour: str, name: str) -> Any:
    from matplotlib.patches import Patch

    return Patch(color=colour, label=legend_name(name))
