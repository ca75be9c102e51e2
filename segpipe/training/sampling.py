"""Which patch of which case, drawn from a random stream; and the patch, read."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

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

    @cached_property
    def voxels(self) -> dict[int, NDArray[np.int32]]:
        """Voxels (z, y, x) of each target that the case holds, ascending."""
        numbers = self.foreground[:, 0]
        return {int(n): self.foreground[numbers == n, 1:] for n in np.unique(numbers)}


@dataclass(frozen=True)
class Sampling:
    """How patches are drawn."""

    patch: Triple
    batch_size: int
    foreground_share: float
    """Share of a batch, its last patches, that is centred on a foreground voxel."""
    weights: tuple[float, ...] = ()
    """How often each target is such a centre, against the others; empty for alike."""
    by_label: bool = False
    """Such a centre's target is drawn before its case, so that one that few cases hold is seen as often as the others."""

    def weight(self, target: int) -> float:
        """Weight of a target, numbered from 1."""
        return self.weights[target - 1] if self.weights else 1.0


def draw_patches(cases: list[CaseExtent], how: Sampling, rng: np.random.Generator) -> list[Patch]:
    """Draw a batch: cases uniformly, the last ``foreground_share`` of the patches centred on a foreground voxel.

    The target is drawn by weight from those present in the case, the voxel uniformly within the target; or the target from those
    present in any case, and then the case among those that hold it. A patch is kept inside the
    image where it fits, and centred on the image along axes where it does not. The other patches, and those of a case without
    foreground, lie anywhere; where some voxels are not labelled, they are centred on one that is.
    """
    n_forced = how.batch_size - round(how.batch_size * (1 - how.foreground_share))
    holders: dict[int, list[int]] = {}
    if how.by_label:
        for number, held in enumerate(cases):
            for target in held.voxels:
                holders.setdefault(target, []).append(number)
    patches = []
    for position in range(how.batch_size):
        index = int(rng.integers(len(cases)))
        weights = _weights(holders if how.by_label else cases[index].voxels, how)
        forced = position >= how.batch_size - n_forced and bool(weights)
        target = _drawn(weights, rng) if forced else 0
        if forced and how.by_label:
            index = holders[target][rng.integers(len(holders[target]))]
        case = cases[index]
        among = case.voxels.get(target)
        centre = None if among is None else among[rng.integers(len(among))]
        start = (
            _start_anywhere(case.shape, how.patch, rng) if centre is None else _start_at(centre, case.shape, how.patch)
        )
        patches.append(Patch(index, start))
    return patches


def _weights(targets: Iterable[int], how: Sampling) -> dict[int, float]:
    """Weights of the targets that a patch may be centred on."""
    return {n: w for n in targets if n > 0 and (w := how.weight(n)) > 0}


def _drawn(weights: dict[int, float], rng: np.random.Generator) -> int:
    shares = np.array(list(weights.values()))
    return int(rng.choice(list(weights), p=shares / shares.sum()))


def _start_anywhere(shape: Triple, patch: Triple, rng: np.random.Generator) -> Triple:
    z, y, x = (int(rng.integers(n - p + 1)) if n > p else -((p - n) // 2) for n, p in zip(shape, patch, strict=True))
    return z, y, x


def _start_at(voxel: NDArray[np.int32], shape: Triple, patch: Triple) -> Triple:
    z, y, x = (
        int(np.clip(v - p // 2, 0, n - p)) if n > p else -((p - n) // 2)
        for v, n, p in zip(voxel, shape, patch, strict=True)
    )
    return z, y, x


def read_box(array: Any, start: tuple[int, ...], size: tuple[int, ...], fill: float) -> Tensor:
    """Read a box of the trailing axes of a tensor, or of anything that slices like numpy; outside it is ``fill``."""
    lead = len(array.shape) - len(size)
    shape = array.shape[lead:]
    first = [max(s, 0) for s in start]
    last = [max(min(s + p, n), f) for s, p, n, f in zip(start, size, shape, first, strict=True)]
    inner = array[(slice(None),) * lead + tuple(slice(f, e) for f, e in zip(first, last, strict=True))]
    inner = inner if isinstance(inner, Tensor) else torch.from_numpy(np.asarray(inner))
    if inner.shape[lead:] == tuple(size):
        return inner
    box = inner.new_full((*inner.shape[:lead], *size), fill)
    where = tuple(slice(f - s, e - s) for f, e, s in zip(first, last, start, strict=True))
    box[(slice(None),) * lead + where] = inner
    return box
