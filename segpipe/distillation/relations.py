"""Losses of how parts of maps relate to each other, whatever their channels. Pure, in float32, for any number of axes.

Two maps may differ in channels and in grid: both are pooled to the same parts. Each loss is 0 where the relations are alike.
"""

from functools import lru_cache
from math import ceil, prod

import torch
from torch import Tensor
from torch.nn import functional as F

from segpipe.distillation.features import on_grid_of, pooled
from segpipe.execution.device import sent

MOST_NODES = 512
"""Where the size of a node is not given: a matrix of their affinities takes a megabyte, as on the 8x8x8 parts of a volume."""
_NO_NORM = 1e-8


def pair_loss(student: Tensor, teacher: Tensor, *, node: int | None = None, nearest: int | None = None) -> Tensor:
    """Mean squared difference of the affinities of nodes.

    A node is the mean of ``node`` voxels along each axis of the teacher's map (beta of the paper is their number), and its affinity to
    another the cosine of the two. Source: structured distillation, Liu et al. 2019 (arXiv 1903.04197; with alpha and beta in the longer
    version of 2020).

    Parameters
    ----------
    student, teacher : Tensor
        (N, C, ...); channels and grids may differ.
    node : int, optional
        Edge of a node; the smallest that gives :data:`MOST_NODES` or fewer, unless given.
    nearest : int, optional
        Each node is compared with so many nearest nodes (alpha of the paper), itself among them; with all unless given.
    """
    shape = tuple(teacher.shape[2:])
    grid = tuple(ceil(n / (node or node_edge(shape))) for n in shape)
    s, t = (_affinities(pooled(x.float(), grid)) for x in (student, teacher))
    if nearest is not None and nearest < prod(grid):
        among = sent(_nearest(grid, nearest), s.device).expand(len(s), -1, -1)
        s, t = s.gather(2, among), t.gather(2, among)
    return (s - t).square().mean()


def node_edge(shape: tuple[int, ...]) -> int:
    """Smallest edge of nodes with which a map has :data:`MOST_NODES` or fewer."""
    edge = 1
    while prod(ceil(n / edge) for n in shape) > MOST_NODES:
        edge += 1
    return edge


@lru_cache(maxsize=8)
def _nearest(grid: tuple[int, ...], n: int) -> Tensor:
    """Indices (nodes, n) of the nearest nodes of each; of equally near ones those that come first."""
    axes = [torch.arange(size, dtype=torch.float64) for size in grid]
    places = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(-1, len(grid))
    squared = (places[:, None] - places[None]).square().sum(-1)
    return squared.sort(dim=1, stable=True).indices[:, :n]


def _affinities(nodes: Tensor) -> Tensor:
    rows = _unit(nodes.flatten(2).transpose(1, 2))
    return rows @ rows.transpose(1, 2)


def region_loss(student: Tensor, teacher: Tensor, labels: Tensor, n_labels: int, kept: Tensor | None = None) -> Tensor:
    """Mean squared difference of how alike regions are: the cosines of the mean feature vectors of each two labels of a sample.

    Labels that a sample does not have form no region. Source: Qin et al. 2021 (arXiv 2108.09987).

    Parameters
    ----------
    student, teacher : Tensor
        (N, C, ...).
    labels : Tensor of int64
        (N, ...) on a grid of the same extent.
    n_labels : int
    kept : Tensor of bool, optional
        (N, ...) voxels that count.
    """
    parts = F.one_hot(labels.clamp(0, n_labels - 1), n_labels).movedim(-1, 1).float()
    if kept is not None:
        parts = parts * kept[:, None]
    cosines, there = [], None
    for features in (student.float(), teacher.float()):
        shares = pooled(parts, tuple(features.shape[2:])) if _is_coarser(features, parts) else parts
        features = on_grid_of(features, shares)
        sizes = shares.flatten(2).sum(2)
        means = shares.flatten(2) @ features.flatten(2).transpose(1, 2) / sizes[..., None].clamp_min(_NO_NORM)
        rows = _unit(means)
        cosines.append(rows @ rows.transpose(1, 2))
        there = sizes > 0 if there is None else there & (sizes > 0)
    assert there is not None
    pairs = (there[:, :, None] & there[:, None, :]).float()
    return ((cosines[0] - cosines[1]).square() * pairs).sum() / pairs.sum().clamp_min(1.0)


def _is_coarser(features: Tensor, parts: Tensor) -> bool:
    return all(a <= b for a, b in zip(features.shape[2:], parts.shape[2:], strict=True))


def relational_loss(student: Tensor, teacher: Tensor, *, parts: int = 3, angle: float = 2.0) -> Tensor:
    """Smooth difference of the distances, and of the angles, among the parts of all patches of a batch.

    Distances are divided by their mean. Source: relational distillation, Park et al. 2019 (arXiv 1904.05068), among parts of patches
    because a batch of volumes has too few samples.

    Parameters
    ----------
    student, teacher : Tensor
        (N, C, ...).
    parts : int
        Along each axis.
    angle : float
        Weight of the angles.
    """
    s, t = (_part_vectors(x, parts) for x in (student, teacher))
    loss = F.smooth_l1_loss(_distances(s), _distances(t))
    return loss + angle * F.smooth_l1_loss(_angles(s), _angles(t)) if angle else loss


def similarity_loss(student: Tensor, teacher: Tensor, *, parts: int = 4) -> Tensor:
    """Mean squared difference of the similarities among the parts of all patches of a batch, each row of length 1.

    Source: similarity-preserving distillation, Tung and Mori 2019 (arXiv 1907.09682), among parts for the same reason.

    Parameters
    ----------
    student, teacher : Tensor
        (N, C, ...).
    parts : int
        Along each axis.
    """
    s, t = (_unit(rows @ rows.T) for rows in (_part_vectors(x, parts) for x in (student, teacher)))
    return (s - t).square().mean()


def _part_vectors(features: Tensor, parts: int) -> Tensor:
    """Mean features (parts of all samples, C)."""
    grid = tuple(min(parts, n) for n in features.shape[2:])
    return pooled(features.float(), grid).flatten(2).transpose(1, 2).flatten(0, 1)


def _distances(rows: Tensor) -> Tensor:
    squared = (rows[:, None] - rows[None]).square().sum(-1)
    distances = squared.clamp_min(_NO_NORM).sqrt() * (squared > _NO_NORM)
    # The distance of a part to itself is 0, and counts for nothing.
    n_pairs = max(len(rows) * (len(rows) - 1), 1)
    return distances / (distances.sum() / n_pairs).clamp_min(_NO_NORM)


def _angles(rows: Tensor) -> Tensor:
    """Cosine of the angle at each part between each two others."""
    directions = _unit(rows[None] - rows[:, None])
    return directions @ directions.transpose(1, 2)


def _unit(rows: Tensor) -> Tensor:
    unit: Tensor = rows / rows.norm(dim=-1, keepdim=True).clamp_min(_NO_NORM)
    return unit
