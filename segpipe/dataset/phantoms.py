"""The demo dataset: organs that are drawn, not scanned. Small, and the same bytes for the same seed.

A body with a large organ (``liver``), a pair of organs (``kidneys``) and a small one inside the large one (``lesion``),
each with a texture of its own, under a smooth bias field and noise. Grids differ from case to case as clinical ones do:
slice distance, in-plane spacing, obliquity, direction of the axes, file format.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, zoom

from segpipe.core import seeds
from segpipe.core.geometry import Grid
from segpipe.io.formats import write_volume

LABELS = {"background": 0, "liver": 1, "kidneys": 2, "lesion": 3}
N_CASES = 12

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Phantom:
    """One drawn case."""

    image: NDArray[np.int16]
    labels: NDArray[np.uint8]
    grid: Grid


def write_phantoms(folder: Path, n_cases: int = N_CASES, seed: int = 0) -> list[Path]:
    """Write the demo dataset (images/, labels/, dataset.json) and return its files.

    Odd cases are NRRD, even ones NIfTI; the last case has no lesion.
    """
    written = []
    for number in range(n_cases):
        phantom = draw_phantom(number, seeds.stream(seed, "phantom", number), lesion=number < n_cases - 1)
        ending = ".nrrd" if number % 2 else ".nii.gz"
        for kind, array in (("images", phantom.image), ("labels", phantom.labels)):
            path = folder / kind / f"phantom_{number:02d}{ending}"
            write_volume(path, array, phantom.grid)
            written.append(path)
    declaration = {"name": "phantoms", "channel_names": {"0": "MR"}, "labels": LABELS, "licence": "CC0-1.0"}
    path = folder / "dataset.json"
    path.write_text(json.dumps(declaration, indent=1) + "\n", encoding="utf-8", newline="\n")
    return [*written, path]


def draw_phantom(number: int, rng: np.random.Generator, *, lesion: bool = True) -> Phantom:
    """Draw one case; ``number`` chooses the kind of grid, ``rng`` everything else."""
    grid = _grid(number, rng)
    place = _millimetres(grid)
    size = rng.uniform(0.9, 1.1)
    wobble = _smooth(rng, grid.shape, 5) * 0.12
    liver_centre = np.array([0, 4, 16]) + rng.normal(0, 2, 3)
    lesion_centre = liver_centre + rng.uniform([-8, -6, -5], [8, 6, 5])

    def ellipsoid(centre: Floats, radii: tuple[float, float, float]) -> NDArray[np.bool_]:
        distance = np.sqrt((((place - centre) / (np.array(radii) * size)) ** 2).sum(-1))
        inside: NDArray[np.bool_] = distance + wobble < 1
        return inside

    labels = np.zeros(grid.shape, dtype=np.uint8)
    body = ellipsoid(np.zeros(3), (36, 33, 46))
    labels[ellipsoid(liver_centre, (24, 20, 22)) & body] = LABELS["liver"]
    for side in (-1, 1):
        centre = np.array([-4, -17, side * 24]) + rng.normal(0, 1.5, 3)
        labels[ellipsoid(centre, (16, 9, 10)) & body] = LABELS["kidneys"]
    if lesion:
        radius = rng.uniform(8, 10)
        labels[ellipsoid(lesion_centre, (radius, radius, radius)) & (labels == LABELS["liver"])] = LABELS["lesion"]
    return Phantom(_image(labels, body, rng), labels, grid)


def _image(labels: NDArray[np.uint8], body: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.int16]:
    """Mean and texture of each tissue, times a bias field, plus noise, times a case's own gain."""
    means = np.array([300.0, 520.0, 700.0, 880.0]) + rng.normal(0, 20, 4)
    image = np.where(body, means[labels], 0.0)
    image += np.where(body, _smooth(rng, labels.shape, 1.2) * np.array([40.0, 25.0, 50.0, 25.0])[labels], 0.0)
    image *= np.exp(0.25 * _smooth(rng, labels.shape, 16))
    image = np.abs(image + rng.normal(0, 25, labels.shape)) * rng.uniform(0.6, 1.8)
    return (np.round(image / 4) * 4).astype(np.int16)


def _smooth(rng: np.random.Generator, shape: tuple[int, ...], sigma: float) -> Floats:
    """Smooth noise of unit standard deviation; coarse scales are drawn on a coarser grid."""
    step = max(int(sigma // 3), 1)
    coarse = tuple(-(-n // step) + 2 for n in shape)
    field = gaussian_filter(rng.normal(size=coarse), sigma / step)
    if step > 1:
        field = zoom(field, step, order=1)
    field = field[tuple(slice(0, n) for n in shape)]
    smooth: Floats = (field - field.mean()) / field.std()
    return smooth


def _grid(number: int, rng: np.random.Generator) -> Grid:
    """Thick slices; a third of the cases oblique, a third with axes that run to the left and back."""
    in_plane = float(np.round(rng.uniform(2.2, 2.6), 2))
    thickness = float(np.round(rng.uniform(3.6, 4.4), 1))
    shape = (round(76 / thickness), round(76 / in_plane), round(100 / in_plane))
    columns = np.array([[0.0, 0, 1], [0, 1, 0], [1, 0, 0]])
    if number % 3 == 1:
        tilt, turn = np.deg2rad(rng.uniform(5, 18, 2))
        about_x = np.array([[1, 0, 0], [0, np.cos(tilt), -np.sin(tilt)], [0, np.sin(tilt), np.cos(tilt)]])
        about_z = np.array([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]])
        columns = about_z @ about_x @ columns
    elif number % 3 == 2:
        columns = np.diag([-1.0, -1.0, 1.0]) @ columns
    affine = np.eye(4)
    affine[:3, :3] = columns * np.array([thickness, in_plane, in_plane])
    affine[:3, 3] = -affine[:3, :3] @ (np.array(shape) - 1) / 2 + rng.normal(0, 30, 3)
    return Grid.from_affine(shape, affine)


def _millimetres(grid: Grid) -> Floats:
    """Position of each voxel in the body, (z, y, x) mm from the image's centre: the body turns with its grid's origin, not its axes."""
    index = np.stack(np.meshgrid(*(np.arange(n, dtype=np.float64) for n in grid.shape), indexing="ij"), axis=-1)
    offset = (index - (np.array(grid.shape) - 1) / 2) @ grid.affine[:3, :3].T
    return offset[..., ::-1]
