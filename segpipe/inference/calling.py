"""Which label is called at each voxel."""

import torch
from torch import Tensor


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
