"""Where the foreground is, so that a sampler finds it without reading the volume. Pure."""

import numpy as np
from numpy.typing import NDArray

MAX_PER_CLASS = 10_000
"""Voxels kept of each class; more would only repeat neighbours."""


def foreground_index(segmentation: NDArray[np.int16], n_classes: int, rng: np.random.Generator) -> NDArray[np.int32]:
    """List foreground voxels as rows (class, z, y, x), sorted by class, at most MAX_PER_CLASS a class drawn without replacement."""
    rows = []
    flat = segmentation.ravel()
    for k in range(1, n_classes):
        voxels = np.flatnonzero(flat == k)
        if len(voxels) > MAX_PER_CLASS:
            voxels = np.sort(rng.choice(voxels, MAX_PER_CLASS, replace=False))
        coordinates = np.stack(np.unravel_index(voxels, segmentation.shape), axis=1)
        rows.append(np.concatenate([np.full((len(voxels), 1), k), coordinates], axis=1))
    return np.concatenate(rows).astype(np.int32) if rows else np.empty((0, 4), dtype=np.int32)


def class_voxels(segmentation: NDArray[np.int16], n_classes: int) -> tuple[int, ...]:
    """Voxels of each class index."""
    counts = np.bincount(segmentation[segmentation >= 0].ravel(), minlength=n_classes)
    return tuple(int(n) for n in counts)
