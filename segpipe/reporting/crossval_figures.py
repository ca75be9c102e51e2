"""Figures of a cross-validation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from segpipe.crossvalidation.schema import Calibration
from segpipe.evaluation.comparison import ALL_LABELS
from segpipe.evaluation.schema import CaseScores
from segpipe.evaluation.score import case_value
from segpipe.reporting.drawn import legend_name, save

_DPI = 120
_WIDEST_INCHES = 14.0


def draw_scores(folds: Mapping[str, Sequence[CaseScores]], labels: Sequence[str], path: Path) -> Path:
    """Draw the Dice of every test case, by label; colours are outer folds, lines medians."""
    names = [*labels, ALL_LABELS]
    figure = Figure(figsize=(min(2 + 1.1 * len(names), _WIDEST_INCHES), 4.2), layout="constrained")
    axes = figure.subplots()
    for at, name in enumerate(names):
        everything: list[float] = []
        for number, scores in enumerate(folds.values()):
            values = [v for case in scores if (v := case_value(case, name, "dice")) is not None]
            jitter = np.random.default_rng([at, number]).uniform(-0.22, 0.22, len(values))
            axes.scatter(at + jitter, values, s=22, alpha=0.75, color=f"C{number % 10}", linewidths=0)
            everything += values
        if everything:
            axes.hlines(np.median(everything), at - 0.32, at + 0.32, color="black", linewidth=1.5)
    axes.set_xticks(range(len(names)), names, rotation=0 if len(names) <= 8 else 60, fontsize=8)
    axes.set_ylim(-0.03, 1.03)
    axes.set_ylabel("Dice")
    axes.grid(axis="y", alpha=0.25)
    return save(figure, path, _DPI)


def draw_calibration(found: Mapping[str, Calibration], path: Path) -> Path:
    """Draw the reliability of each label's probabilities: how often a voxel has the label, over what was said of it."""
    figure = Figure(figsize=(4.8, 4.4), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="grey", linewidth=1, linestyle="--")
    for name, calibration in found.items():
        x, y = [b.probability for b in calibration.bins], [b.frequency for b in calibration.bins]
        axes.plot(
            x, y, marker="o", markersize=3, linewidth=1.2, label=f"{legend_name(name)}, ECE {calibration.ece:.3f}"
        )
    axes.set_xlabel("probability")
    axes.set_ylabel("share of voxels with the label")
    axes.set_aspect("equal")
    if len(found) <= 20:
        axes.legend(fontsize=7)
    return save(figure, path, _DPI)
