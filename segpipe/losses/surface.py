"""Losses of distances to surfaces. Distance maps are computed on the CPU, case by case: they cost time.

Ignored voxels lie in no mask, so the border of what is labelled counts as a surface where a mask reaches it.

Sources: boundary: Kervadec et al. 2019 (arXiv 1812.07032); Hausdorff: Karimi and Salcudean 2019 (arXiv 1904.10030), by distance transforms.
"""

from collections.abc import Callable

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from segpipe.execution.device import sent
from segpipe.losses.reference import Reference, Total, alone, at_least_something, mean_of


def boundary_loss(
    probabilities: Tensor, reference: Reference, *, spacing: tuple[float, ...], total: Total = alone
) -> Tensor:
    """Mean over voxels of probability times signed distance to the reference's surface: negative inside, 0 on its voxels.

    Parameters
    ----------
    probabilities : Tensor
        (N, T, ...) of each target.
    reference : Reference
    spacing : tuple of float
        Size of a voxel; distances are in units of its shortest edge.
    total : callable
        Sum over the processes that share a batch.

    Returns
    -------
    Tensor
        Scalar; a target that is absent from a sample, or fills it, has no surface there and adds 0.
    """
    (distance,) = _maps([reference.inside], spacing, _signed)
    return _mean(probabilities * distance, reference, total)


def hausdorff_loss(
    probabilities: Tensor, reference: Reference, *, spacing: tuple[float, ...], alpha: float = 2.0, total: Total = alone
) -> Tensor:
    """Mean over voxels of the squared error times the distances to both surfaces, each to the power ``alpha``.

    Parameters
    ----------
    probabilities, reference, spacing, total
        See :func:`boundary_loss`; the prediction's surface is that of what is likelier than 0.5, and no gradient flows through it.

    Returns
    -------
    Tensor
        Scalar; a mask without a surface adds no distance.
    """
    inside, kept = reference.inside, reference.kept
    predicted = probabilities.detach() if kept is None else probabilities.detach() * kept[:, None]
    of_both = _maps([predicted, inside], spacing, _unsigned)
    distance = of_both[0] ** alpha + of_both[1] ** alpha
    return _mean((probabilities - inside).square() * distance, reference, total)


def _mean(voxels: Tensor, reference: Reference, total: Total) -> Tensor:
    """Mean of (N, T, ...) over the voxels that count."""
    if reference.kept is None:
        return mean_of(voxels, total)
    counts = reference.kept[:, None].to(voxels.dtype)
    return total((voxels * counts).sum()) / at_least_something(total(counts.sum() * voxels.shape[1]))


def _maps(soft: list[Tensor], spacing: tuple[float, ...], of: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Tensor:
    """Distance map (S, N, T, ...) of each mask of S tensors (N, T, ...), all brought to the host together."""
    masks = torch.stack([x > 0.5 for x in soft]).cpu().numpy()
    relative = np.array(spacing) / min(spacing)
    maps = np.zeros(masks.shape, np.float32)
    for index in np.ndindex(masks.shape[:3]):
        mask = masks[index]
        if mask.any() and not mask.all():
            maps[index] = of(mask, relative)
    return sent(maps, soft[0].device, soft[0].dtype)


def _unsigned(mask: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    found: np.ndarray = distance_transform_edt(mask, spacing) + distance_transform_edt(~mask, spacing)
    return found


def _signed(mask: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    outside, inside = distance_transform_edt(~mask, spacing), distance_transform_edt(mask, spacing)
    found: np.ndarray = np.where(mask, 1 - inside, outside)
    return found
