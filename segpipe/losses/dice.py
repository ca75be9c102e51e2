"""Soft Dice loss."""

from collections.abc import Callable

import torch
from torch import Tensor

Members = tuple[tuple[int, ...], ...]
"""Label indices that each target covers."""
Total = Callable[[Tensor], Tensor]
"""Sum over the processes that share a batch, through which gradients flow."""


def alone(x: Tensor) -> Tensor:
    """Sum of one process."""
    return x


def soft_dice_loss(
    probabilities: Tensor,
    target: Tensor,
    members: Members,
    *,
    batch_dice: bool,
    kept: Tensor | None = None,
    smooth: float = 1e-5,
    total: Total = alone,
) -> Tensor:
    """Negative soft Dice, averaged over the targets (labels or regions; no background).

    Parameters
    ----------
    probabilities : Tensor
        (N, T, ...) of each target.
    target : Tensor of int64
        (N, ...) label indices.
    members : tuple of tuple of int
        Label indices that each target covers.
    batch_dice : bool
        Sum overlaps over the batch before dividing, instead of sample by sample.
    kept : Tensor of bool, optional
        (N, ...) voxels that count; all of them unless given.
    smooth : float
        Added to numerator and denominator; a target absent from both gives 1.
    total : callable
        Sum over the processes that each hold a part of the batch: the loss is that of the whole batch.

    Returns
    -------
    Tensor
        Scalar in [-1, 0].

    Source: Drozdzal et al. 2016, in nnU-Net's form.
    """
    spatial = tuple(range(1, target.ndim))
    overlaps, sizes = [], []
    for number, indices in enumerate(members):
        # Target by target, so that no one-hot copy of the labels is held.
        inside = is_any(target, indices)
        p = probabilities[:, number]
        if kept is not None:
            p, inside = p * kept, inside & kept
        overlaps.append((p * inside).sum(spatial))
        sizes.append(p.sum(spatial) + inside.sum(spatial))
    overlap, size = torch.stack(overlaps, 1), torch.stack(sizes, 1)
    if batch_dice:
        overlap, size = total(overlap.sum(0)), total(size.sum(0))
    scores = (2 * overlap + smooth) / (size + smooth).clamp_min(1e-8)
    return -scores.mean() if batch_dice else -mean_of(scores, total)


def mean_of(values: Tensor, total: Total) -> Tensor:
    """Mean over all values of all processes."""
    return total(values.sum()) / total(values.new_full((), float(values.numel())))


def is_any(target: Tensor, indices: tuple[int, ...]) -> Tensor:
    """Where labels (N, ...) have one of the indices."""
    inside = target == indices[0]
    for index in indices[1:]:
        inside = inside | (target == index)
    return inside
