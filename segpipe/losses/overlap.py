"""Losses of overlapping volumes: Dice, Tversky and generalised Dice."""

from dataclasses import dataclass

import torch
from torch import Tensor

from segpipe.losses.reference import Members, Reference, Total, alone, is_any, mean_of

SMOOTH = 1e-5
"""Added to numerators and denominators: a target that is absent from both counts as found."""


@dataclass(frozen=True)
class Overlap:
    """Soft counts of voxels (N, T): in both, in the prediction, in the reference; summed to (T,) over a batch."""

    both: Tensor
    predicted: Tensor
    reference: Tensor

    def over(self, total: Total) -> "Overlap":
        """Sum over the batch, and over the processes that share it."""
        return Overlap(*(total(t.sum(0)) for t in (self.both, self.predicted, self.reference)))


def overlap_of(probabilities: Tensor, target: Tensor, members: Members, kept: Tensor | None = None) -> Overlap:
    """Count, target by target, so that no one-hot copy of the labels is held.

    Parameters
    ----------
    probabilities : Tensor
        (N, T, ...) of each target.
    target : Tensor of int64
        (N, ...) label indices.
    members : tuple of tuple of int
        Label indices that each target covers.
    kept : Tensor of bool, optional
        (N, ...) voxels that count; all of them unless given.
    """
    spatial = tuple(range(1, target.ndim))
    both, predicted, reference = [], [], []
    for number, indices in enumerate(members):
        inside, p = is_any(target, indices), probabilities[:, number]
        if kept is not None:
            p, inside = p * kept, inside & kept
        both.append((p * inside).sum(spatial))
        predicted.append(p.sum(spatial))
        reference.append(inside.sum(spatial))
    return Overlap(torch.stack(both, 1), torch.stack(predicted, 1), torch.stack(reference, 1))


def soft_dice_loss(
    probabilities: Tensor,
    target: Tensor,
    members: Members,
    *,
    batch_dice: bool,
    kept: Tensor | None = None,
    smooth: float = SMOOTH,
    total: Total = alone,
) -> Tensor:
    """Negative soft Dice, averaged over the targets (labels or regions; no background).

    Parameters
    ----------
    probabilities, target, members, kept
        See :func:`overlap_of`.
    batch_dice : bool
        Sum overlaps over the batch before dividing, instead of sample by sample.
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
    counts = overlap_of(probabilities, target, members, kept)
    both, size = counts.both, counts.predicted + counts.reference
    if batch_dice:
        both, size = total(both.sum(0)), total(size.sum(0))
    scores = (2 * both + smooth) / (size + smooth).clamp_min(1e-8)
    return -scores.mean() if batch_dice else -mean_of(scores, total)


def tversky_loss(
    probabilities: Tensor,
    reference: Reference,
    *,
    false_positives: float,
    false_negatives: float,
    exponent: float = 1.0,
    batch: bool = False,
    smooth: float = SMOOTH,
    total: Total = alone,
) -> Tensor:
    """One minus the Tversky index, to a power, averaged over the targets.

    The index is overlap over overlap plus weighted false positives and false negatives; with 0.5 and 0.5 it is Dice. An exponent
    below 1 makes the last errors of a small target count more.

    Returns
    -------
    Tensor
        Scalar in [0, 1]; a target absent from both gives 0.

    Sources: Salehi et al. 2017 (arXiv 1706.05721); exponent: Abraham and Khan 2019 (arXiv 1810.07842), who write 1 / gamma.
    """
    counts = overlap_of(probabilities, reference.target, reference.members, reference.kept)
    if batch:
        counts = counts.over(total)
    wrong = false_positives * (counts.predicted - counts.both) + false_negatives * (counts.reference - counts.both)
    index = (counts.both + smooth) / (counts.both + wrong + smooth)
    # A power below 1 is infinitely steep at 0.
    missing = 1 - index if exponent == 1 else (1 - index).clamp_min(1e-7) ** exponent
    return missing.mean() if batch else mean_of(missing, total)


def generalised_dice_loss(
    logits: Tensor, reference: Reference, *, smooth: float = SMOOTH, total: Total = alone
) -> Tensor:
    """One minus Dice over all targets together, each weighed by the inverse square of its size in the sample.

    If labels exclude each other, the background is one of them. A target that is absent from a sample weighs as much as the
    smallest one that is there. A sample in which no target is costs nothing.

    Returns
    -------
    Tensor
        Scalar in [0, 1].

    Source: Sudre et al. 2017 (arXiv 1707.03237).
    """
    members = reference.members if reference.regions else ((0,), *reference.members)
    probabilities = logits.sigmoid() if reference.regions else logits.softmax(1)
    counts = overlap_of(probabilities, reference.target, members, reference.kept)
    sizes = counts.reference.to(counts.both.dtype)
    there = sizes > 0
    # The smallest target weighs 1, so that the sums are counts of voxels, beside which the smoothing is nothing however large the patch.
    smallest = torch.where(there, sizes, sizes.new_full((), torch.inf)).amin(1, keepdim=True)
    weights = torch.where(there, smallest / sizes.clamp_min(1), torch.ones_like(sizes)).square()
    weights = weights * there.any(1, keepdim=True)
    both = 2 * (weights * counts.both).sum(1) + smooth
    size = (weights * (counts.predicted + counts.reference)).sum(1) + smooth
    return mean_of(1 - both / size, total)
