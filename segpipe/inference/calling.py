"""Which label, or which regions, are called at each voxel."""

import torch
from torch import Tensor

MOST_REGIONS = 62
"""That fit into the bits of a number."""


def call(logits: Tensor, *, axis: int = 0, regions: bool) -> Tensor:
    """What is called at each voxel: the largest output, or the set of regions as the bits of a number."""
    if not regions:
        return largest(logits, axis)
    outputs = logits.unbind(axis)
    called = torch.zeros(outputs[0].shape, dtype=torch.int64, device=logits.device)
    for number, region in enumerate(outputs):
        called |= (region > 0).to(torch.int64) << number % MOST_REGIONS
    return called


def largest(logits: Tensor, axis: int = 0) -> Tensor:
    """Index of the largest logit along an axis, the first one of equal ones; uint8, or int16 for more than 256.

    The same as ``argmax``, label by label: torch's own, along an axis that is not the last, takes ten times as long on a CPU.
    """
    labels = logits.unbind(axis)
    best = labels[0].clone()
    called = torch.zeros(best.shape, dtype=torch.uint8 if len(labels) <= 256 else torch.int16, device=best.device)
    for number, logit in enumerate(labels[1:], start=1):
        called.masked_fill_(logit > best, number)
        torch.maximum(best, logit, out=best)
    return called
