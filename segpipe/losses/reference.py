"""What a prediction is compared with: the labels of a batch, and what they mean."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from segpipe.core.labels import Labels

Members = tuple[tuple[int, ...], ...]
"""Label indices that each target covers."""
Total = Callable[[Tensor], Tensor]
"""Sum over the processes that share a batch, through which gradients flow."""


def alone(x: Tensor) -> Tensor:
    """Sum of one process."""
    return x


@dataclass(frozen=True)
class Reference:
    """Labels of a batch."""

    target: Tensor
    """(N, ...) label indices, int64."""
    members: Members
    regions: bool = False
    """Targets may overlap and each is predicted by itself; else they and the background exclude each other."""
    ignore: int | None = None
    """Index of voxels that do not count."""

    @classmethod
    def of(cls, target: Tensor, labels: Labels) -> "Reference":
        """Labels of a dataset."""
        return cls(target, labels.members, labels.regions, labels.ignore_index)

    @cached_property
    def kept(self) -> Tensor | None:
        """(N, ...) voxels that count; None for all of them."""
        return None if self.ignore is None else self.target != self.ignore

    @cached_property
    def inside(self) -> Tensor:
        """(N, T, ...) float32, 1 inside each target; ignored voxels lie in none."""
        return torch.stack([is_any(self.target, indices) for indices in self.members], dim=1).float()

    def probabilities(self, logits: Tensor) -> Tensor:
        """(N, T, ...) of each target, without the background."""
        return logits.sigmoid() if self.regions else logits.softmax(1)[:, 1:]


def is_any(target: Tensor, indices: tuple[int, ...]) -> Tensor:
    """Where labels (N, ...) have one of the indices."""
    inside = target == indices[0]
    for index in indices[1:]:
        inside = inside | (target == index)
    return inside


def mean_of(values: Tensor, total: Total) -> Tensor:
    """Mean over all values of all processes."""
    return total(values.sum()) / total(values.new_full((), float(values.numel())))


def at_least_something(count: Tensor) -> Tensor:
    """Return a divisor: a batch may hold no labelled voxel at all, and its loss is then 0, not 0/0."""
    return torch.where(count > 0, count, torch.ones_like(count))
