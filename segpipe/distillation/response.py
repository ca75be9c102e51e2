"""Losses of what two networks say of each voxel. Pure, in float32, for any number of axes.

Both are given as scores (N, K, ...): logits, of labels that exclude each other (to a constant a voxel) or of regions, each by itself.
Every loss is 0 where the student says the same, and nothing of the student is clamped: where it is surest of a wrong answer, it learns
most.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

LOWEST = -16.0
"""Logarithm of the least probability that a teacher's count as: one that is stored as 0 stays a number."""
_NO_NORM = 1e-8


def scores_of(probabilities: Tensor, *, regions: bool = False) -> Tensor:
    """Scores of a teacher's probabilities (N, K, ...), some of which may be 0 or 1."""
    exact = probabilities.float()
    if regions:
        return torch.logit(exact, eps=float(torch.tensor(LOWEST).exp()))
    return exact.clamp_min(1e-30).log().clamp_min(LOWEST)


def log_probabilities(scores: Tensor, *, regions: bool = False, temperature: float = 1.0) -> Tensor:
    """Log-probabilities of scores, divided by a temperature."""
    cooled = scores.float() / temperature
    return F.logsigmoid(cooled) if regions else cooled.log_softmax(1)


def probabilities_of(scores: Tensor, *, regions: bool = False, temperature: float = 1.0) -> Tensor:
    """Probabilities of scores, divided by a temperature."""
    cooled = scores.float() / temperature
    return cooled.sigmoid() if regions else cooled.softmax(1)


def voxel_loss(
    student: Tensor,
    teacher: Tensor,
    *,
    temperature: float = 1.0,
    regions: bool = False,
    kept: Tensor | None = None,
    by_class: bool = False,
) -> Tensor:
    """Kullback-Leibler divergence of teacher and student, times the squared temperature; mean over voxels that count.

    For regions it is that of each region's yes or no, averaged over the regions. Source: Hinton et al. 2015 (arXiv 1503.02531).

    Parameters
    ----------
    student, teacher : Tensor
        Scores (N, K, ...).
    temperature : float
    regions : bool
    kept : Tensor of bool, optional
        (N, ...) voxels that count; all unless given.
    by_class : bool
        Mean over the teacher's classes of the mean over the voxels of each; else over all voxels alike. Of regions, a voxel's class is
        which of them it lies in.
    """
    s, t = (log_probabilities(x, regions=regions, temperature=temperature) for x in (student, teacher))
    divergence = t.exp() * (t - s)
    if regions:
        s_no, t_no = (F.logsigmoid(-x.float() / temperature) for x in (student, teacher))
        divergence = (divergence + t_no.exp() * (t_no - s_no)).mean(1)
    else:
        divergence = divergence.sum(1)
    divergence = divergence * temperature**2
    weights = torch.ones_like(divergence) if kept is None else kept.to(divergence.dtype)
    if by_class:
        weights = weights / _class_sizes(teacher, weights, regions=regions).clamp_min(1)
    return (divergence * weights).sum() / weights.sum().clamp_min(1e-12)


def channel_loss(
    student: Tensor,
    teacher: Tensor,
    *,
    temperature: float = 4.0,
    kept: Tensor | None = None,
    present: Tensor | None = None,
) -> Tensor:
    """Divergence of where channels are strong: each is made a distribution over the positions of its patch.

    Times the squared temperature; mean over samples and channels. Source: Shu et al. 2021 (arXiv 2011.13256), on feature maps or, as
    here by default, on log-probabilities.

    Parameters
    ----------
    student, teacher : Tensor
        (N, C, ...).
    temperature : float
    kept : Tensor of bool, optional
        (N, ...) positions that count.
    present : Tensor of bool, optional
        (N, C) channels that count: where a patch has nothing of a class, where it is strongest is noise.
    """
    s, t = student.float().flatten(2) / temperature, teacher.float().flatten(2) / temperature
    if kept is not None:
        left_out = ~kept.flatten(1)[:, None]
        s, t = s.masked_fill(left_out, -1e4), t.masked_fill(left_out, -1e4)
    s, t = s.log_softmax(2), t.log_softmax(2)
    divergence = (t.exp() * (t - s)).sum(2) * temperature**2
    weights = torch.ones_like(divergence) if present is None else present.to(divergence.dtype)
    return (divergence * weights).sum() / weights.sum().clamp_min(1.0)


def correlation_loss(
    student: Tensor,
    teacher: Tensor,
    *,
    temperature: float = 1.0,
    regions: bool = False,
    kept: Tensor | None = None,
    between: float = 1.0,
    within: float = 1.0,
) -> Tensor:
    """One minus Pearson's correlation over the classes of each voxel, and over the voxels of each class.

    Source: DIST, Huang et al. 2022 (arXiv 2205.10536). A class that the patch has nothing of has no correlation, and does not count;
    nor does a correlation over two classes, which is 1 or -1 and teaches nothing.

    Parameters
    ----------
    student, teacher : Tensor
        Scores (N, K, ...).
    temperature : float
    regions : bool
    kept : Tensor of bool, optional
        (N, ...) voxels that count.
    between, within : float
        Weights of the two parts.
    """
    s, t = (probabilities_of(x, regions=regions, temperature=temperature).flatten(2) for x in (student, teacher))
    weights = torch.ones_like(s[:, :1]) if kept is None else kept.flatten(1)[:, None].to(s.dtype)
    value = s.new_zeros(())
    if between and s.shape[1] > 2:
        over_classes = 1 - _correlation(s, t, torch.ones_like(s), dim=1)
        value = value + between * (over_classes * weights[:, 0]).sum() / weights.sum().clamp_min(1.0)
    if within:
        over_voxels = 1 - _correlation(s, t, weights.expand_as(s), dim=2)
        there = present_classes(teacher, regions=regions, kept=kept).to(s.dtype)
        value = value + within * (over_voxels * there).sum() / there.sum().clamp_min(1.0)
    return value


def present_classes(teacher: Tensor, *, regions: bool, kept: Tensor | None = None) -> Tensor:
    """Classes (N, K) that the teacher sees somewhere in each patch."""
    if regions:
        called = teacher > 0
        return (called if kept is None else called & kept[:, None]).flatten(2).any(2)
    winners = teacher.argmax(1).flatten(1)
    counted = torch.ones_like(winners) if kept is None else kept.flatten(1).long()
    found = torch.zeros(teacher.shape[:2], dtype=torch.int64, device=teacher.device)
    return found.scatter_add_(1, winners, counted) > 0


def _class_sizes(teacher: Tensor, counted: Tensor, *, regions: bool) -> Tensor:
    """How many voxels that count each voxel's class has in the batch: (N, ...) of scores (N, K, ...).

    A class is the label that the teacher calls, or the set of regions that it finds there.
    """
    if not regions:
        classes = teacher.argmax(1)
        sizes = torch.zeros(teacher.shape[1], dtype=counted.dtype, device=counted.device)
        return sizes.scatter_add_(0, classes.flatten(), counted.flatten())[classes]
    sets = sum((teacher[:, k] > 0).long() << k for k in range(teacher.shape[1]))
    assert isinstance(sets, Tensor)
    # Sorted, voxels of one set are neighbours. torch.unique would ask a GPU how many sets there are.
    ordered, order = sets.flatten().sort()
    before = F.pad(counted.flatten()[order].long().cumsum(0), (1, 0))
    first, last = (torch.searchsorted(ordered, sets, right=right) for right in (False, True))
    return before[last] - before[first]


def _correlation(a: Tensor, b: Tensor, weights: Tensor, *, dim: int) -> Tensor:
    total = weights.sum(dim, keepdim=True).clamp_min(1.0)
    a, b = ((x - (x * weights).sum(dim, keepdim=True) / total) * weights for x in (a, b))
    lengths = a.square().sum(dim).clamp_min(_NO_NORM**2).sqrt() * b.square().sum(dim).clamp_min(_NO_NORM**2).sqrt()
    # Two that are constant are alike.
    found: Tensor = ((a * b).sum(dim) + _NO_NORM**2) / lengths
    return found
