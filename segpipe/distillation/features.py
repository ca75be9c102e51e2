"""Losses of feature maps, position by position. Pure, in float32, for any number of axes; each is 0 where the maps are alike."""

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from segpipe.augment.apply import along_axes
from segpipe.execution.device import sent

_NO_NORM = 1e-8


def hint_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of maps (N, C, ...). Source: FitNets, Romero et al. 2015 (arXiv 1412.6550)."""
    return (on_grid_of(student, teacher) - teacher.float()).square().mean()


def attention_loss(student: Tensor, teacher: Tensor, *, power: float = 2.0) -> Tensor:
    """Squared distance of the attention maps, each of length 1; mean over samples.

    A position's attention is the mean over channels of the features' size to a power. Source: Zagoruyko and Komodakis 2017
    (arXiv 1612.03928).
    """
    maps = [x.abs().pow(power).mean(1, keepdim=True) for x in (student.float(), teacher.float())]
    s, t = (_unit(x.flatten(1)) for x in (on_grid_of(maps[0], maps[1]), maps[1]))
    return (s - t).square().sum(1).mean()


def flow_loss(student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor]) -> Tensor:
    """Mean squared difference of the flow matrices of two layers: products of their channels, averaged over positions.

    Both networks' layers have the same channels (a projector's, where they differ); the finer layer is pooled to the coarser one's grid.
    Source: FSP, Yim et al. 2017 (CVPR).
    """
    return (_flow(*student) - _flow(*teacher)).square().mean()


def _flow(first: Tensor, second: Tensor) -> Tensor:
    first, second = first.float(), second.float()
    shape = [min(a, b) for a, b in zip(first.shape[2:], second.shape[2:], strict=True)]
    a, b = (pooled(x, shape).flatten(2) for x in (first, second))
    return a @ b.transpose(1, 2) / a.shape[2]


def hide(features: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Set a share of the positions of (N, C, ...) to 0, the same in all channels."""
    drawn = torch.rand((features.shape[0], 1, *features.shape[2:]), generator=generator)
    return features * sent(drawn >= share, features.device, features.dtype)


def on_grid_of(student: Tensor, teacher: Tensor) -> Tensor:
    """Bring a map (N, C, ...) onto the grid of another, linearly, in float32."""
    shape, student = teacher.shape[2:], student.float()
    if student.shape[2:] == shape:
        return student
    return F.interpolate(student, size=shape, mode="bilinear" if len(shape) == 2 else "trilinear")


def pooled(features: Tensor, shape: list[int] | tuple[int, ...]) -> Tensor:
    """Mean over the parts of a map (N, C, ...) that a coarser grid has: torch's adaptive average pooling, one axis after the other.

    As products with small matrices its gradient has a deterministic form on every device; torch's own has none on a GPU.
    """
    if list(features.shape[2:]) == list(shape):
        return features
    matrices = [_means(n, parts) for n, parts in zip(features.shape[2:], shape, strict=True)]
    return along_axes(features.flatten(0, 1), matrices).reshape(*features.shape[:2], *shape)


@lru_cache(maxsize=32)
def _means(n: int, parts: int) -> NDArray[np.float32]:
    """(parts, n): each row takes the mean of the positions of a part; neighbouring parts share one where n is no multiple of them."""
    matrix = np.zeros((parts, n), np.float32)
    for part in range(parts):
        begin, end = part * n // parts, -(-(part + 1) * n // parts)
        matrix[part, begin:end] = 1 / (end - begin)
    return matrix


def _unit(rows: Tensor) -> Tensor:
    unit: Tensor = rows / rows.norm(dim=1, keepdim=True).clamp_min(_NO_NORM)
    return unit
