"""Where the labels are, so that a sampler finds them without reading the volume. Pure."""

import numpy as np
from numpy.typing import NDArray

from segpipe.core.labels import Labels

MAX_PER_TARGET = 10_000
"""Voxels kept of each target; more would only repeat neighbours."""
LABELLED = 0
"""Stands, in the place of a target's number, for any voxel that is not ignored."""


def foreground_index(segmentation: NDArray[np.int16], labels: Labels, rng: np.random.Generator) -> NDArray[np.int32]:
    """List voxels of the targets as rows (target, z, y, x), targets numbered from 1 in their order.

    At most MAX_PER_TARGET are kept of each, drawn without replacement. Where a value is ignored, rows of number LABELLED list
    voxels that are not, background included.
    """
    flat = segmentation.ravel()
    rows = []
    if labels.ignore_index is not None:
        rows.append(_rows(LABELLED, _some(flat != labels.ignore_index, rng), segmentation.shape))
    for number, members in enumerate(labels.members, start=1):
        inside = flat == members[0]
        for index in members[1:]:
            inside |= flat == index
        rows.append(_rows(number, _some(inside, rng), segmentation.shape))
    return np.concatenate(rows).astype(np.int32)


def _some(mask: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.intp]:
    """Positions of at most MAX_PER_TARGET true voxels of a flat mask, ascending."""
    found = np.flatnonzero(mask) if _few(mask) else _tried(mask, rng)
    if len(found) > MAX_PER_TARGET:
        found = np.sort(rng.choice(found, MAX_PER_TARGET, replace=False))
    return found


def _few(mask: NDArray[np.bool_]) -> bool:
    """Whether so few voxels are true that listing them takes less memory than the mask, or they are all wanted."""
    n_true = int(np.count_nonzero(mask))
    return n_true <= max(mask.size // 8, 2 * MAX_PER_TARGET)


def _tried(mask: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.intp]:
    """Distinct true positions out of random ones; over an eighth of the voxels are true, so that enough of them are hit."""
    tries = np.unique(rng.integers(mask.size, size=32 * MAX_PER_TARGET))
    return tries[mask[tries]]


def _rows(number: int, voxels: NDArray[np.intp], shape: tuple[int, ...]) -> NDArray[np.intp]:
    coordinates = np.stack(np.unravel_index(voxels, shape), axis=1)
    return np.concatenate([np.full((len(voxels), 1), number), coordinates], axis=1)


def index_voxels(segmentation: NDArray[np.int16], labels: Labels) -> tuple[int, ...]:
    """Voxels of each label index; the last number is that of ignored voxels where a value is ignored."""
    counts = np.zeros(len(labels.values) + (labels.ignore_index is not None) + 1, dtype=np.int64)
    # Plane by plane, one up because OUTSIDE is -1: the counting makes a copy of eight bytes a voxel.
    for plane in segmentation:
        counts += np.bincount(plane.ravel() + 1, minlength=len(counts))
    return tuple(int(c) for c in counts[1:])
