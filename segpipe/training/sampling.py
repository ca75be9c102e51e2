"""Which patch of which case: drawn from a random stream. Pure numpy."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Triple = tuple[int, int, int]


@dataclass(frozen=True)
class Patch:
    """Start of a patch in a case; it may begin before the image or end after it."""

    case: int
    start: Triple


@dataclass(frozen=True)
class CaseExtent:
    """What a sampler must know of a case: its shape and its foreground voxels."""

    shape: Triple
    foreground: NDArray[np.int32]
    """Rows (target, z, y, x); target 0 stands for any labelled voxel, listed where some are not labelled."""


def draw_patches(
    cases: list[CaseExtent], patch: Triple, batch_size: int, foreground_share: float, rng: np.random.Generator
) -> list[Patch]:
    """Draw a batch: cases uniformly, the last ``foreground_share`` of the patches centred on a foreground voxel.

    The target is uniform over those present in the case, the voxel uniform within the target. A patch is kept inside the
    image where it fits, and centred on the image along axes where it does not. The other patches, and those of a case without
    foreground, lie anywhere; where some voxels are not labelled, they are centred on one that is.
    """
    n_forced = batch_size - round(batch_size * (1 - foreground_share))
    patches = []
    for position in range(batch_size):
        index = int(rng.integers(len(cases)))
        case = cases[index]
        targets = case.foreground[case.foreground[:, 0] > 0]
        labelled = case.foreground[case.foreground[:, 0] == 0]
        if position >= batch_size - n_forced and len(targets):
            present = targets[targets[:, 0] == rng.choice(np.unique(targets[:, 0]))]
            start = _start_at(present[rng.integers(len(present)), 1:], case.shape, patch)
        elif len(labelled):
            start = _start_at(labelled[rng.integers(len(labelled)), 1:], case.shape, patch)
        else:
            start = _start_anywhere(case.shape, patch, rng)
        patches.append(Patch(index, start))
    return patches


def _start_anywhere(shape: Triple, patch: Triple, rng: np.random.Generator) -> Triple:
    z, y, x = (int(rng.integers(n - p + 1)) if n > p else -((p - n) // 2) for n, p in zip(shape, patch, strict=True))
    return z, y, x


def _start_at(voxel: NDArray[np.int32], shape: Triple, patch: Triple) -> Triple:
    z, y, x = (
        int(np.clip(v - p // 2, 0, n - p)) if n > p else -((p - n) // 2)
        for v, n, p in zip(voxel, shape, patch, strict=True)
    )
    return z, y, x


def read_box(
    array: NDArray[np.generic], start: tuple[int, ...], size: tuple[int, ...], fill: float
) -> NDArray[np.generic]:
    """Read a box of the trailing axes of an array (or of anything that slices like one); outside it is ``fill``."""
    lead = array.ndim - len(size)
    shape = array.shape[lead:]
    first = [max(s, 0) for s in start]
    last = [max(min(s + p, n), f) for s, p, n, f in zip(start, size, shape, first, strict=True)]
    inner = array[(slice(None),) * lead + tuple(slice(f, e) for f, e in zip(first, last, strict=True))]
    if inner.shape[lead:] == tuple(size):
        return np.asarray(inner)
    box = np.full((*array.shape[:lead], *size), fill, dtype=array.dtype)
    where = tuple(slice(f - s, e - s) for f, e, s in zip(first, last, start, strict=True))
    box[(slice(None),) * lead + where] = inner
    return box
