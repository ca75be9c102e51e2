"""Losses joined: Dice with cross-entropy, for labels and for regions, and over several resolutions."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from segpipe.labels import Labels
from segpipe.losses.dice import Members, Total, alone, is_any, mean_of, soft_dice_loss

Loss = Callable[[Tensor, Tensor], Tensor]


def loss_for(labels: Labels, *, batch_dice: bool, total: Total = alone) -> Loss:
    """Loss of logits (N, K, ...) and label indices (N, ...) that suits the labels: ignored voxels and regions included.

    Where several processes share a batch, ``total`` sums over them and the loss is that of the whole batch.
    """
    members, ignore = labels.members, labels.ignore_index
    of = region_dice_cross_entropy if labels.regions else dice_cross_entropy
    return lambda logits, target: of(logits, target, members, batch_dice=batch_dice, ignore=ignore, total=total)


def dice_cross_entropy(
    logits: Tensor,
    target: Tensor,
    members: Members,
    *,
    batch_dice: bool,
    ignore: int | None = None,
    total: Total = alone,
) -> Tensor:
    """Soft Dice loss plus cross-entropy, one to one, in float32; labels exclude each other.

    Parameters
    ----------
    logits : Tensor
        (N, K, ...), background first.
    target : Tensor of int64
        (N, ...) label indices.
    members : tuple
        ((1,), (2,), ...).
    batch_dice : bool
        See :func:`~segpipe.losses.dice.soft_dice_loss`.
    ignore : int, optional
        Index of voxels that do not count.
    total : callable
        See :func:`~segpipe.losses.dice.soft_dice_loss`.
    """
    logits = logits.float()
    # Rows of voxels instead of a volume: the same number, and deterministic on a GPU too; a view where channels are last.
    rows, answers = logits.movedim(1, -1).reshape(-1, logits.shape[1]), target.reshape(-1)
    kept = None
    if ignore is None:
        cross_entropy = mean_of(F.cross_entropy(rows, answers, reduction="none"), total)
    else:
        kept = target != ignore
        summed = F.cross_entropy(rows, answers, ignore_index=ignore, reduction="sum")
        # A batch may hold no labelled voxel at all: its loss is 0, not 0/0.
        cross_entropy = total(summed) / total(kept.sum()).clamp_min(1)
    probabilities = logits.softmax(1)[:, 1:]
    dice = soft_dice_loss(probabilities, target, members, batch_dice=batch_dice, kept=kept, total=total)
    return dice + cross_entropy


def region_dice_cross_entropy(
    logits: Tensor,
    target: Tensor,
    members: Members,
    *,
    batch_dice: bool,
    ignore: int | None = None,
    total: Total = alone,
) -> Tensor:
    """Soft Dice loss plus binary cross-entropy of regions, each told apart by itself; in float32.

    Parameters
    ----------
    logits : Tensor
        (N, R, ...), one channel a region.
    target : Tensor of int64
        (N, ...) label indices.
    members : tuple of tuple of int
        Label indices that each region covers.
    batch_dice, ignore, total
        As in :func:`dice_cross_entropy`.
    """
    logits = logits.float()
    kept = None if ignore is None else target != ignore
    inside = torch.stack([is_any(target, indices) for indices in members], dim=1).to(logits.dtype)
    if kept is None:
        cross_entropy = mean_of(F.binary_cross_entropy_with_logits(logits, inside, reduction="none"), total)
    else:
        voxelwise = F.binary_cross_entropy_with_logits(logits, inside, reduction="none") * kept[:, None]
        cross_entropy = total(voxelwise.sum()) / (total(kept.sum()) * logits.shape[1]).clamp_min(1)
    dice = soft_dice_loss(logits.sigmoid(), target, members, batch_dice=batch_dice, kept=kept, total=total)
    return dice + cross_entropy


def supervision_weights(n_resolutions: int) -> list[float]:
    """Weights of the resolutions, highest first: halved at each step, summing to 1.

    nnU-Net gives its lowest resolution weight 0; the networks here leave that one out, so the weights are the same.
    """
    weights = [0.5**i for i in range(n_resolutions)]
    return [w / sum(weights) for w in weights]


def deep_supervision(logits: list[Tensor], target: Tensor, loss: Loss) -> Tensor:
    """Weighted sum of a loss over resolutions; the target is brought to each by nearest neighbour.

    Parameters
    ----------
    logits : list of Tensor
        (N, K, ...), highest resolution first.
    target : Tensor of int64
        (N, ...) at the highest resolution.
    loss : callable
        Of logits and target.
    """
    total = logits[0].new_zeros((), dtype=logits[0].float().dtype)
    for weight, level in zip(supervision_weights(len(logits)), logits, strict=True):
        total = total + weight * loss(level, shrink_labels(target, tuple(level.shape[2:])))
    return total


def shrink_labels(target: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Bring labels (N, ...) to a smaller shape by nearest neighbour."""
    if tuple(target.shape[1:]) == shape:
        return target
    return F.interpolate(target[:, None].float(), size=shape, mode="nearest-exact")[:, 0].to(target.dtype)
