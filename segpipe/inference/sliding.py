"""Sliding-window prediction of one prepared image."""

from collections.abc import Callable
from itertools import combinations

import torch
from torch import Tensor
from torch.nn import functional as F

from segpipe.windows import gaussian_weights, padding_to, window_starts

Forward = Callable[[Tensor], Tensor]


def mirror_combinations(axes: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Every set of axes to flip, the empty one first."""
    return [chosen for n in range(len(axes) + 1) for chosen in combinations(axes, n)]


def mirrored(forward: Forward, axes: tuple[int, ...]) -> Forward:
    """Average a network's logits over all flips of the given spatial axes."""
    flips = [tuple(2 + a for a in chosen) for chosen in mirror_combinations(axes)]

    def averaged(x: Tensor) -> Tensor:
        total = forward(x)
        for dims in flips[1:]:
            total = total + forward(x.flip(dims)).flip(dims)
        return total / len(flips)

    return averaged


@torch.inference_mode()
def sliding_logits(
    forward: Forward,
    image: Tensor,
    patch: tuple[int, ...],
    *,
    device: torch.device,
    step: float = 0.5,
) -> Tensor:
    """Join a network's logits over windows, weighted by a Gaussian.

    Parameters
    ----------
    forward : callable
        (1, C, *patch) to (1, K, *patch).
    image : Tensor of float32
        (C, Z, Y, X). A patch of two axes is slid over every slice.
    patch : tuple of int
        Window size, (z, y, x) or (y, x).
    device : torch.device
        Where the logits are accumulated.
    step : float
        Largest step as a share of the patch.

    Returns
    -------
    Tensor of float32
        (K, Z, Y, X) on ``device``.
    """
    flat = len(patch) == 2
    window = (1, *patch) if flat else patch
    shape = tuple(image.shape[1:])
    padding = padding_to(shape, window)
    padded = F.pad(image, [n for before_after in reversed(padding) for n in before_after]).to(device)
    weights = torch.from_numpy(gaussian_weights(patch)).to(device)
    total: Tensor | None = None
    weight_sum = torch.zeros(padded.shape[1:], device=device)
    for start in window_starts(tuple(padded.shape[1:]), window, step):
        box = tuple(slice(s, s + w) for s, w in zip(start, window, strict=True))
        tile = padded[(slice(None), *box)][None]
        logits = forward(tile[:, :, 0])[:, :, None] if flat else forward(tile)
        if total is None:
            total = torch.zeros((logits.shape[1], *padded.shape[1:]), device=device)
        total[(slice(None), *box)] += logits[0].float() * weights
        weight_sum[box] += weights
    assert total is not None
    total /= weight_sum
    inner = tuple(slice(before, before + n) for (before, _), n in zip(padding, shape, strict=True))
    return total[(slice(None), *inner)]
