"""clDice: how much of the centre lines of tubes lies inside the other mask.

Source: Shit et al. 2021 (arXiv 2003.07311).
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from segpipe.losses.reference import Reference, Total, alone, mean_of


def cldice_loss(
    probabilities: Tensor, reference: Reference, *, iterations: int = 3, smooth: float = 1.0, total: Total = alone
) -> Tensor:
    """One minus the harmonic mean of how much of each mask's soft skeleton lies in the other mask, all targets together.

    Parameters
    ----------
    probabilities : Tensor
        (N, T, ...) of each target.
    reference : Reference
    iterations : int
        Erosions until the skeleton.
    smooth : float
        Added to both fractions; a sample in which both masks are empty gives about 0.
    total : callable
        Sum over the processes that share a batch.

    Returns
    -------
    Tensor
        Scalar in [0, 1].
    """
    inside = reference.inside.to(probabilities)
    if reference.kept is not None:
        probabilities = probabilities * reference.kept[:, None]
    axes = tuple(range(1, inside.ndim))
    ours, theirs = soft_skeleton(probabilities, iterations), soft_skeleton(inside, iterations)
    precision = ((ours * inside).sum(axes) + smooth) / (ours.sum(axes) + smooth)
    sensitivity = ((theirs * probabilities).sum(axes) + smooth) / (theirs.sum(axes) + smooth)
    return mean_of(1 - 2 * precision * sensitivity / (precision + sensitivity), total)


def soft_skeleton(mask: Tensor, iterations: int) -> Tensor:
    """What an opening takes away, at each of several erosions: (N, T, ...) to the same shape."""
    skeleton = F.relu(mask - _dilated(_eroded(mask)))
    for _ in range(iterations):
        mask = _eroded(mask)
        found = F.relu(mask - _dilated(_eroded(mask)))
        skeleton = skeleton + F.relu(found - skeleton * found)
    return skeleton


def _eroded(mask: Tensor) -> Tensor:
    """Least value along each axis by itself, over three voxels."""
    dims = mask.ndim - 2
    smallest = []
    for axis in range(dims):
        window = tuple(3 if a == axis else 1 for a in range(dims))
        smallest.append(-_max_pool(-mask, window))
    least = smallest[0]
    for other in smallest[1:]:
        least = torch.minimum(least, other)
    return least


def _dilated(mask: Tensor) -> Tensor:
    return _max_pool(mask, (3,) * (mask.ndim - 2))


def _max_pool(mask: Tensor, window: tuple[int, ...]) -> Tensor:
    padding = tuple(n // 2 for n in window)
    if len(window) == 2:
        return F.max_pool2d(mask, window, 1, padding)
    return F.max_pool3d(mask, window, 1, padding)
