"""Losses joined: Dice with cross-entropy, and over several resolutions."""

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional as F

from segpipe.losses.dice import soft_dice_loss


def dice_cross_entropy(logits: Tensor, target: Tensor, *, batch_dice: bool) -> Tensor:
    """Soft Dice loss plus cross-entropy, one to one, in float32.

    Parameters
    ----------
    logits : Tensor
        (N, K, ...).
    target : Tensor of int64
        (N, ...) class indices.
    batch_dice : bool
        See :func:`~segpipe.losses.dice.soft_dice_loss`.
    """
    logits = logits.float()
    # Rows of voxels instead of a volume: the same number, and deterministic on a GPU too; a view where channels are last.
    rows = logits.movedim(1, -1).reshape(-1, logits.shape[1])
    cross_entropy = F.cross_entropy(rows, target.reshape(-1))
    return soft_dice_loss(logits.softmax(1), target, batch_dice=batch_dice) + cross_entropy


def supervision_weights(n_resolutions: int) -> list[float]:
    """Weights of the resolutions, highest first: halved at each step, summing to 1.

    nnU-Net gives its lowest resolution weight 0; the networks here leave that one out, so the weights are the same.
    """
    weights = [0.5**i for i in range(n_resolutions)]
    return [w / sum(weights) for w in weights]


def deep_supervision(logits: list[Tensor], target: Tensor, loss: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
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
