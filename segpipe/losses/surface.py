"""Losses of distances to surfaces. Distance maps are computed on the CPU, case by case: they cost time.

Sources: boundary: Kervadec et al. 2019 (arXiv 1812.07032); Hausdorff: Karimi and Salcudean 2019 (arXiv 1904.10030), by distance transforms.
"""

from collections.abc import Callable

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from segpipe.losses.reference import Reference, Total, alone, mean_of


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
        Of a voxel; distances are in units of its shortest edge.
    total : callable
        Sum over the processes that share a batch.

    Returns
    -------
    Tensor
        Scalar; a target that is absent from a sample, or fills it, has no surface there and adds 0.
    """
    return mean_of(_kept(probabilities * _maps(reference.inside, spacing, _signed), reference), total)


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
    inside = reference.inside
    distance = _maps(probabilities.detach(), spacing, _unsigned) ** alpha + _maps(inside, spacing, _unsigned) ** alpha
    return mean_of(_kept((probabilities - inside).square() * distance, reference), total)


def _kept(voxels: Tensor, reference: Reference) -> Tensor:
    """(N, T, ...) with 0 where a voxel is ignored."""
    return voxels if reference.kept is None else voxels * reference.kept[:, None]


def _maps(soft: Tensor, spacing: tuple[float, ...], of: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Tensor:
    """Distance map of each mask of (N, T, ...)."""
    masks = (soft > 0.5).cpu().numpy()
    relative = np.array(spacing) / min(spacing)
    maps = np.zeros(masks.shape, np.float32)
    for index in np.ndindex(masks.shape[:2]):
        mask = masks[index]
        if mask.any() and not mask.all():
            maps[index] = of(mask, relative)
    return torch.from_numpy(maps).to(soft)


def _unsigned(mask: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    found: np.ndarray = distance_transform_edt(mask, spacing) + distance_transform_edt(~mask, spacing)
    return found


def _signed(mask: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    outside, inside = distance_transform_edt(~mask, spacing), distance_transform_edt(mask, spacing)
    found: np.ndarray = np.where(mask, 1 - inside, outside)
    return found
