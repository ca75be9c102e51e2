"""Means over voxels: cross-entropy, focal and top-k; of labels that exclude each other, and of regions.

Sources: class weights as in Çiçek et al. 2016 (arXiv 1606.06650), whose weighted softmax gives voxels that nobody labelled weight 0;
focal: Lin et al. 2017 (arXiv 1708.02002); top-k: Wu et al. 2016 (arXiv 1605.06885).
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from segpipe.losses.reference import Reference, Total, alone, at_least_something


def cross_entropy_map(logits: Tensor, reference: Reference) -> Tensor:
    """Cross-entropy of every voxel: (rows,) of labels, (rows, R) of regions; 0 where a voxel is ignored.

    Rows of voxels instead of a volume: the same numbers, and deterministic on a GPU too; a view where channels are last.
    """
    if reference.regions:
        inside = _rows(reference.inside).to(logits.dtype)
        losses = F.binary_cross_entropy_with_logits(_rows(logits), inside, reduction="none")
        return losses if reference.kept is None else losses * reference.kept.reshape(-1, 1)
    ignore = -100 if reference.ignore is None else reference.ignore
    return F.cross_entropy(_rows(logits), reference.target.reshape(-1), ignore_index=ignore, reduction="none")


def cross_entropy(
    logits: Tensor, reference: Reference, *, weights: Tensor | None = None, gamma: float = 0.0, total: Total = alone
) -> Tensor:
    """Weighted mean over labelled voxels of the cross-entropy, or of the focal loss where ``gamma`` is not 0.

    Parameters
    ----------
    logits : Tensor
        (N, K, ...): K labels with the background first, or K regions.
    reference : Reference
    weights : Tensor, optional
        (K,) of each label or region; a voxel's weight is that of its own label, and the sum is divided by the voxels' weights.
    gamma : float
        Power of one minus the probability of the right answer.
    total : callable
        Sum over the processes that share a batch.

    Returns
    -------
    Tensor
        Scalar; 0 where no voxel is labelled or all weights are 0.
    """
    losses = cross_entropy_map(logits, reference)
    if gamma:
        # The cross-entropy is minus the logarithm of that probability; a probability of exactly 1 has no gradient either way.
        losses = losses * (-torch.expm1(-losses)).clamp_min(torch.finfo(losses.dtype).tiny) ** gamma
    counts = _voxel_weights(losses, reference, weights)
    if counts is None:
        return total(losses.sum()) / total(losses.new_full((), float(losses.numel())))
    return total((losses * counts).sum()) / at_least_something(total(counts.sum()))


def top_k_cross_entropy(logits: Tensor, reference: Reference, *, share: float, total: Total = alone) -> Tensor:
    """Mean cross-entropy of the share of labelled voxels where it is largest, in this process's part of a batch; 0 where there is none."""
    losses = cross_entropy_map(logits, reference)
    k = min(max(round(share * losses.numel()), 1), losses.numel())
    if reference.kept is None:
        hardest = torch.topk(losses.flatten(), k).values if k < losses.numel() else losses
        return total(hardest.sum()) / at_least_something(total(losses.new_full((), float(k))))
    # How many voxels are labelled is not asked for: a GPU would have to be waited for. As many as if all were are taken, ignored ones
    # last, and of these as many as count.
    kept = _voxel_weights(losses, reference, None)
    assert kept is not None
    hardest = torch.topk(losses.masked_fill(kept == 0, -1.0).flatten(), k).values
    n_kept = kept.sum()
    n = (share * n_kept).round().clamp_min(1.0).minimum(n_kept)
    counted = torch.arange(k, device=losses.device) < n
    return total(torch.where(counted, hardest, 0.0).sum()) / at_least_something(total(n))


def _voxel_weights(losses: Tensor, reference: Reference, weights: Tensor | None) -> Tensor | None:
    """How much each entry of a map counts; None where all count alike."""
    kept = None if reference.kept is None else reference.kept.reshape(-1, *(1,) * (losses.ndim - 1)).to(losses.dtype)
    if weights is None:
        return None if kept is None else kept.expand_as(losses)
    weights = weights.to(losses)
    own = None if reference.regions else reference.target.reshape(-1).clamp_max(len(weights) - 1)
    counts = weights.expand_as(losses) if own is None else weights[own]
    return counts if kept is None else counts * kept


def _rows(volume: Tensor) -> Tensor:
    return volume.movedim(1, -1).reshape(-1, volume.shape[1])
