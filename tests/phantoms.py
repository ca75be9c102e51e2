"""Small drawn cases for tests: a cube in noise, on any grid, in any format."""

import json
from pathlib import Path

import numpy as np

from segpipe.core.geometry import Grid
from segpipe.io.formats import write_volume

TINY_RECIPE = """
name = "tiny"
description = "Small."
[planner]
base_features = 4
budget_gb = 0.25
max_batch = 2
[training]
patches_per_case = 1
validation_batches = 1
"""
"""The smallest network and the shortest epochs that the planner gives."""


def axis_grid(shape, spacing=(2.0, 1.5, 1.0), origin=(10.0, -20.0, 5.0)) -> Grid:
    """A grid whose axes z, y, x run to superior, anterior, right."""
    affine = np.eye(4)
    affine[:3, :3] = np.array([[0, 0, 1], [0, 1, 0], [1, 0, 0]]) * np.array(spacing)
    affine[:3, 3] = origin
    return Grid.from_affine(shape, affine)


def cube_case(rng, shape=(16, 20, 24), values=(1,)):
    """Image and labels of cubes, one a label value, brighter than the noise around them."""
    labels = np.zeros(shape, dtype=np.uint16)
    for number, value in enumerate(values):
        start = [int(rng.integers(1, n // 2 - 1)) for n in shape]
        start[2] = 2 + number * (shape[2] // len(values))
        box = tuple(slice(s, s + n // 3) for s, n in zip(start, (*shape[:2], shape[2] // len(values)), strict=True))
        labels[box] = value
    image = rng.normal(100, 10, shape) + 80 * np.searchsorted([0, *values], labels)
    return image.astype(np.float32), labels


def write_case(folder: Path, case: str, image, labels, grid: Grid, ending=".nii.gz") -> None:
    write_volume(folder / "images" / f"{case}{ending}", image, grid)
    write_volume(folder / "labels" / f"{case}{ending}", labels, grid)


def write_small_dataset(folder: Path, n_cases=6, values=(1, 2), shape=(16, 20, 24), names=None) -> Path:
    """A dataset in the images/ + labels/ layout; every other case is NRRD."""
    for number in range(n_cases):
        rng = np.random.default_rng(number)
        image, labels = cube_case(rng, shape, values)
        write_case(folder, f"case_{number}", image, labels, axis_grid(shape), ".nrrd" if number % 2 else ".nii.gz")
    declared = names or {"background": 0, **{f"cube_{v}": v for v in values}}
    (folder / "dataset.json").write_text(
        json.dumps({"name": folder.name, "channel_names": {"0": "MR"}, "labels": declared}), encoding="utf-8"
    )
    return folder
