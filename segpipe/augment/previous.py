"""Spoil the segmentation that a cascade's second stage is given, so that it learns to correct it rather than to copy it.

Probabilities are nnU-Net's: a sample's labels are eroded, dilated, opened or closed by a ball, and lose a component.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from scipy.ndimage import label as connected
from torch import Tensor

from segpipe.execution.device import sent

P_MORPHOLOGY, P_REMOVAL, P_LABEL = 0.4, 0.2, 0.5
RADII = (1, 8)
"""Smallest and largest radius of the ball, in voxels."""
LARGEST_REMOVED = 0.15
"""A component that takes a larger share of the patch stays."""

Operation = Literal["dilate", "erode", "open", "close"]
_OPERATIONS: tuple[Operation, ...] = ("dilate", "erode", "open", "close")


@dataclass(frozen=True)
class Spoiling:
    """What happens to the previous segmentation of one sample."""

    changes: tuple[tuple[int, Operation, int], ...] = ()
    """Label, operation and radius, in order."""
    removals: tuple[tuple[int, float], ...] = ()
    """Label, and which of its components, as a share of their number."""


def draw_spoiling(n_labels: int, rng: np.random.Generator) -> Spoiling:
    """Draw for one sample; labels are 1 to ``n_labels``."""
    labels = range(1, n_labels + 1)
    changes: tuple[tuple[int, Operation, int], ...] = ()
    removals: tuple[tuple[int, float], ...] = ()
    if rng.random() < P_MORPHOLOGY:
        changes = tuple(
            (n, _OPERATIONS[rng.integers(4)], int(rng.integers(RADII[0], RADII[1] + 1)))
            for n in labels
            if rng.random() < P_LABEL
        )
    if rng.random() < P_REMOVAL:
        removals = tuple((n, float(rng.random())) for n in labels if rng.random() < P_LABEL)
    return Spoiling(changes, removals)


def spoil(labels: Tensor, spoilings: tuple[Spoiling, ...]) -> Tensor:
    """Apply to label indices (N, Z, Y, X)."""
    labels = labels.clone()
    for sample, spoiling in zip(labels, spoilings, strict=True):
        for number, operation, radius in spoiling.changes:
            mask = sample == number
            changed = _morphology(mask, operation, radius)
            sample[mask & ~changed] = 0
            sample[changed] = number
        for number, which in spoiling.removals:
            _remove_component(sample, number, which)
    return labels


def one_hot(labels: Tensor, n_labels: int) -> Tensor:
    """(N, Z, Y, X) to one float32 channel per label, (N, n_labels, Z, Y, X)."""
    numbers = torch.arange(1, n_labels + 1, device=labels.device).reshape(1, -1, *(1,) * (labels.ndim - 1))
    return (labels[:, None] == numbers).float()


def _morphology(mask: Tensor, operation: Operation, radius: int) -> Tensor:
    if operation == "dilate":
        return _dilated(mask, radius)
    if operation == "erode":
        return ~_dilated(~mask, radius)
    if operation == "open":
        return _dilated(~_dilated(~mask, radius), radius)
    return ~_dilated(~_dilated(mask, radius), radius)


def _dilated(mask: Tensor, radius: int) -> Tensor:
    """Dilate by a ball: counted by a convolution, in Fourier space because a ball of radius 8 has over two thousand voxels."""
    grid = torch.arange(-radius, radius + 1, device=mask.device)
    ball = torch.stack(torch.meshgrid(*[grid] * mask.ndim, indexing="ij")).square().sum(0) <= radius**2
    size = [n + 2 * radius for n in mask.shape]
    counted: Tensor = torch.fft.irfftn(torch.fft.rfftn(mask.float(), size) * torch.fft.rfftn(ball.float(), size), size)
    for axis, n in enumerate(mask.shape):
        counted = counted.narrow(axis, radius, n)
    return counted > 0.5


def _remove_component(sample: Tensor, number: int, which: float) -> None:
    components, n = connected((sample == number).cpu().numpy())
    sizes = np.bincount(components.ravel(), minlength=n + 1)[1:]
    small = np.flatnonzero(sizes < LARGEST_REMOVED * sample.numel()) + 1
    if len(small):
        gone = components == small[int(which * len(small))]
        sample[sent(gone, sample.device)] = 0
