"""From logits at the network's spacing back to labels on the image's own grid."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from segpipe.preprocessing.prepare import Placement
from segpipe.preprocessing.resample import nearest_indices


def largest_at(logits: Tensor, shape: tuple[int, int, int], apart: int | None) -> NDArray[np.int16]:
    """Resample logits linearly and take the largest, one by one, so that memory does not grow with the labels.

    Parameters
    ----------
    logits : Tensor of float32
        (K, Z, Y, X).
    shape : tuple of int
        Native (Z, Y, X).
    apart : int or None
        Axis taken by nearest neighbour.
    """
    if tuple(logits.shape[1:]) == shape:
        return logits.argmax(0).to(torch.int16).cpu().numpy()
    best = resample_linear(logits[0], shape, apart)
    classes = torch.zeros(shape, dtype=torch.int16, device=logits.device)
    for k in range(1, logits.shape[0]):
        value = resample_linear(logits[k], shape, apart)
        larger = value > best
        classes[larger] = k
        best = torch.where(larger, value, best)
    return classes.cpu().numpy()


def painted_at(logits: Tensor, shape: tuple[int, int, int], apart: int | None) -> NDArray[np.int16]:
    """Resample the logits of regions linearly and paint each where it is more likely than not, later ones over earlier ones.

    Parameters
    ----------
    logits : Tensor of float32
        (R, Z, Y, X).
    shape : tuple of int
        Native (Z, Y, X).
    apart : int or None
        Axis taken by nearest neighbour.

    Returns
    -------
    ndarray
        Number of the region, from 1; 0 where there is none.
    """
    painted = torch.zeros(shape, dtype=torch.int16, device=logits.device)
    for number, region in enumerate(logits, start=1):
        painted[resample_linear(region, shape, apart) > 0] = number
    return painted.cpu().numpy()


def resample_linear(array: Tensor, shape: tuple[int, int, int], apart: int | None) -> Tensor:
    """Resample (Z, Y, X) linearly, one axis by nearest neighbour where it is interpolated apart."""
    if tuple(array.shape) == shape:
        return array
    if apart is None:
        return F.interpolate(array[None, None], size=shape, mode="trilinear", align_corners=False)[0, 0]
    slices = array.movedim(apart, 0)
    in_plane = [n for axis, n in enumerate(shape) if axis != apart]
    resized = F.interpolate(slices[None], size=in_plane, mode="bilinear", align_corners=False)[0]
    index = torch.from_numpy(nearest_indices(array.shape[apart], shape[apart])).to(array.device)
    return resized[index].movedim(0, apart)


def uncrop(classes: NDArray[np.int16], placement: Placement) -> NDArray[np.int16]:
    """Put the crop back; background (0) outside it."""
    whole = np.zeros(placement.shape_before_crop, dtype=classes.dtype)
    whole[tuple(slice(s, s + n) for s, n in zip(placement.start, placement.shape_after_crop, strict=True))] = classes
    return whole
