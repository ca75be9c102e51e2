"""The processes that train one fold together, one a device; most often there is one."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Ranks:
    """Place of a process among all of them."""

    rank: int = 0
    world: int = 1
    group: Any = None
    """Processes that tell each other plain values over the host: a GPU need not be waited for."""

    @property
    def first(self) -> bool:
        """Whether this one writes files and shows progress."""
        return self.rank == 0

    def share(self, n: int) -> slice:
        """Samples of a batch of ``n`` that are this process's; shares differ by one at most."""
        return slice(self.rank * n // self.world, (self.rank + 1) * n // self.world)

    def part_sizes(self, n: int, parts: int) -> list[int]:
        """Samples in each part of a batch of ``n``, over all processes, when each splits its share as torch's tensor_split does."""
        shares = [Ranks(rank, self.world).share(n) for rank in range(self.world)]
        sizes = [share.stop - share.start for share in shares]
        return [sum(size // parts + (part < size % parts) for size in sizes) for part in range(parts)]

    def total(self, x: Tensor) -> Tensor:
        """Sum over all processes; gradients flow back to each."""
        return x if self.world == 1 else _Total.apply(x)  # type: ignore[no-untyped-call]

    def agree(
        self, *, elapsed_s: float, due: bool, stop: int, failure: str | None
    ) -> tuple[float, bool, int, str | None]:
        """Time of the first process and whether it is to save, the largest stop signal, the first failure: the same answer everywhere."""
        times, dues, stops, failures = zip(*self.gather([(elapsed_s, due, stop, failure)]), strict=True)
        return times[0], dues[0], max(stops), next((f for f in failures if f), None)

    def gather(self, values: list[Any]) -> list[Any]:
        """Every process's values, in order."""
        if self.world == 1:
            return values
        told: list[Any] = [None] * self.world
        dist.all_gather_object(told, values, group=self.group)
        return [value for part in told for value in part]


ALONE = Ranks()


class _Total(torch.autograd.Function):
    """Sum over processes, differentiable.

    Each process holds the same loss of the sum, so the gradients of all of them are summed as well; averaging the parameters'
    gradients over processes, as DDP does, then gives the gradient of that one loss.
    """

    @staticmethod
    def forward(_ctx: Any, x: Tensor) -> Tensor:
        summed = x.clone()
        dist.all_reduce(summed)
        return summed

    @staticmethod
    def backward(_ctx: Any, *gradients: Tensor) -> Tensor:
        summed = gradients[0].clone()
        dist.all_reduce(summed)
        return summed
