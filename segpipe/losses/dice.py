"""Soft Dice loss."""

import torch
from torch import Tensor


def soft_dice_loss(probabilities: Tensor, target: Tensor, *, batch_dice: bool, smooth: float = 1e-5) -> Tensor:
    """Negative soft Dice, averaged over the foreground classes.

    Parameters
    ----------
    probabilities : Tensor
        (N, K, ...) softmax of the logits, background first.
    target : Tensor of int64
        (N, ...) class indices.
    batch_dice : bool
        Sum overlaps over the batch before dividing, instead of sample by sample.
    smooth : float
        Added to numerator and denominator; a class absent from both gives 1.

    Returns
    -------
    Tensor
        Scalar in [-1, 0].

    Source: Drozdzal et al. 2016, in nnU-Net's form (background left out).
    """
    n_classes = probabilities.shape[1]
    spatial = tuple(range(1, target.ndim))
    overlaps, sizes = [], []
    for k in range(1, n_classes):
        # Class by class, so that no one-hot copy of the target is held.
        is_k = target == k
        p = probabilities[:, k]
        overlaps.append((p * is_k).sum(spatial))
        sizes.append(p.sum(spatial) + is_k.sum(spatial))
    overlap, size = torch.stack(overlaps, 1), torch.stack(sizes, 1)
    if batch_dice:
        overlap, size = overlap.sum(0), size.sum(0)
    return -((2 * overlap + smooth) / (size + smooth).clamp_min(1e-8)).mean()
