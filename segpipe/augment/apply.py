"""Apply a drawn augmentation to a batch on its device. The deterministic half: the same draw gives the same batch.

Images are (N, C, ...) float32; labels are (N, ...) with -1 where there is no image.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from segpipe.augment.draw import Draw
from segpipe.augment.spec import AugmentationSpec

_MIN_SPAN = 1e-7


def apply(images: Tensor, labels: Tensor, spec: AugmentationSpec, drawn: Draw) -> tuple[Tensor, Tensor]:
    """Augment a batch.

    Parameters
    ----------
    images : Tensor of float32
        (N, C, ...) of the source patch size.
    labels : Tensor of int64
        (N, ...) of the same size.
    spec : AugmentationSpec
    drawn : Draw

    Returns
    -------
    tuple of Tensor
        Images and labels of the spec's patch size; labels without -1.
    """
    images, labels = move(images, labels, spec, drawn)
    images = add_noise(images, drawn)
    images = blur(images, drawn)
    images = scale_brightness(images, drawn.brightness)
    images = scale_contrast(images, drawn.contrast)
    images = lower_resolution(images, drawn.zoom, in_plane=spec.in_plane)
    images = apply_gamma(images, drawn.gamma_inverted, inverted=True)
    images = apply_gamma(images, drawn.gamma, inverted=False)
    images, labels = flip(images, labels, drawn.flips)
    for channel in spec.masked_channels:
        images[:, channel][labels < 0] = 0
    return images, labels.clamp_min(0)


def centre_crop(array: Tensor, patch: tuple[int, ...]) -> Tensor:
    """Cut the middle of the trailing axes."""
    for axis, p in enumerate(patch, start=array.ndim - len(patch)):
        array = array.narrow(axis, (array.shape[axis] - p) // 2, p)
    return array


def move(images: Tensor, labels: Tensor, spec: AugmentationSpec, drawn: Draw) -> tuple[Tensor, Tensor]:
    """Rotate and scale the samples that were drawn to, cut the others out of the middle."""
    moved_images, moved_labels = (
        centre_crop(images, spec.patch_size).clone(),
        centre_crop(labels, spec.patch_size).clone(),
    )
    if len(drawn.moved):
        which = torch.as_tensor(drawn.moved, device=images.device)
        grid = _sampling_grid(drawn.matrices[drawn.moved], images, spec)
        moved_images[which] = _sample(images[which], grid, spec)
        moved_labels[which] = _sample_labels(labels[which], grid, spec)
    return moved_images, moved_labels


def _sampling_grid(matrices: Any, images: Tensor, spec: AugmentationSpec) -> Tensor:
    """Where each voxel of the patch is read, in grid_sample's coordinates (x first, -1 to 1 over the source)."""
    first = 1 if spec.in_plane else 0
    patch, source = spec.patch_size[first:], images.shape[2 + first :]
    axes = [torch.arange(p, device=images.device, dtype=torch.float32) - (p - 1) / 2 for p in patch]
    offsets = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)
    turned = torch.as_tensor(matrices[:, first:, first:], device=images.device, dtype=torch.float32)
    rows = turned.reshape(len(turned), *(1,) * len(patch), *turned.shape[1:])
    read = (rows * offsets[None, ..., None, :]).sum(-1)
    scale = torch.tensor([2 / n for n in source], device=images.device)
    return (read * scale).flip(-1)


def _sample(images: Tensor, grid: Tensor, spec: AugmentationSpec) -> Tensor:
    """Linear interpolation, 0 outside."""
    if not spec.in_plane:
        return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    # Slices become channels: they all move alike.
    images = centre_crop(images, (spec.patch_size[0], *images.shape[3:]))
    n, c, z = images.shape[:3]
    sampled = F.grid_sample(images.flatten(1, 2), grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return sampled.reshape(n, c, z, *sampled.shape[2:])


def _sample_labels(labels: Tensor, grid: Tensor, spec: AugmentationSpec) -> Tensor:
    """Linear interpolation of each label's indicator, the largest wins; -1 outside."""
    best: Tensor | None = None
    chosen: Tensor | None = None
    for value in torch.unique(labels).tolist():
        if value < 0:
            continue
        share = _sample((labels == value).float()[:, None], grid, spec)[:, 0]
        if best is None or chosen is None:
            best, chosen = share, torch.where(share > 0, value, -1)
        else:
            larger = share > best
            best, chosen = torch.where(larger, share, best), torch.where(larger, value, chosen)
    if best is None or chosen is None:
        return torch.full((labels.shape[0], *spec.patch_size), -1, dtype=labels.dtype, device=labels.device)
    return torch.where(best > 0, chosen, -1).to(labels.dtype)


def add_noise(images: Tensor, drawn: Draw) -> Tensor:
    """Add Gaussian noise, one strength a sample."""
    which = np.flatnonzero(drawn.noise_std)
    if not len(which):
        return images
    generator = torch.Generator(images.device).manual_seed(drawn.noise_seed)
    index = torch.as_tensor(which, device=images.device)
    noise = torch.randn((len(which), *images.shape[1:]), generator=generator, device=images.device)
    images[index] += noise * _per_sample(drawn.noise_std[which], images)
    return images


def blur(images: Tensor, drawn: Draw) -> Tensor:
    """Gaussian blur, axis by axis, of the channels that were drawn to."""
    for n, c in np.argwhere(drawn.blur_sigma.any(axis=2)):
        image = images[n, c][None, None]
        for axis, sigma in enumerate(drawn.blur_sigma[n, c]):
            image = _blur_axis(image, axis, float(sigma))
        images[n, c] = image[0, 0]
    return images


def _blur_axis(image: Tensor, axis: int, sigma: float) -> Tensor:
    reach = min(max(int(3 * sigma + 0.5), 1), image.shape[2 + axis] - 1)
    if reach < 1:
        return image
    x = torch.arange(-reach, reach + 1, device=image.device, dtype=torch.float32)
    kernel = torch.exp(-0.5 * (x / sigma) ** 2)
    kernel = kernel / kernel.sum()
    dims = image.ndim - 2
    padding = [0] * (2 * dims)
    padding[2 * (dims - 1 - axis)] = padding[2 * (dims - 1 - axis) + 1] = reach
    padded = F.pad(image, padding, mode="reflect")
    # Shifted sums: for seven taps on one channel this is faster than a convolution on a CPU.
    size = image.shape[2 + axis]
    blurred = torch.zeros_like(image)
    for tap, weight in enumerate(kernel):
        blurred += weight * padded.narrow(2 + axis, tap, size)
    return blurred


def scale_brightness(images: Tensor, factors: Any) -> Tensor:
    """Multiply channels."""
    return images if (factors == 1).all() else images * _per_channel(factors, images)


def scale_contrast(images: Tensor, factors: Any) -> Tensor:
    """Stretch channels about their mean, kept within their old range."""
    for n, c in np.argwhere(factors != 1):
        image = images[n, c]
        low, high, mean = image.min(), image.max(), image.mean()
        images[n, c] = ((image - mean) * float(factors[n, c]) + mean).clamp(low, high)
    return images


def lower_resolution(images: Tensor, zoom: Any, *, in_plane: bool) -> Tensor:
    """Sample channels down by nearest neighbour and up again linearly; the first axis stays where only in-plane moves."""
    mode = "bilinear" if images.ndim == 4 else "trilinear"
    for n, c in np.argwhere(zoom != 1):
        full = tuple(images.shape[2:])
        small = [max(round(s * float(zoom[n, c])), 1) for s in full]
        if in_plane:
            small[0] = full[0]
        coarse = F.interpolate(images[n, c][None, None], size=small, mode="nearest-exact")
        images[n, c] = F.interpolate(coarse, size=full, mode=mode, align_corners=False)[0, 0]
    return images


def apply_gamma(images: Tensor, exponents: Any, *, inverted: bool) -> Tensor:
    """Raise channels, scaled to 0..1, to a power; mean and standard deviation are kept."""
    for n, c in np.argwhere(exponents != 1):
        image = -images[n, c] if inverted else images[n, c]
        mean, std = image.mean(), image.std()
        low, span = image.min(), image.max() - image.min()
        bent = ((image - low) / span.clamp_min(_MIN_SPAN)).pow(float(exponents[n, c])) * span + low
        bent = (bent - bent.mean()) / bent.std().clamp_min(_MIN_SPAN) * std + mean
        images[n, c] = -bent if inverted else bent
    return images


def flip(images: Tensor, labels: Tensor, flips: Any) -> tuple[Tensor, Tensor]:
    """Mirror samples; twice is the identity."""
    for n in np.flatnonzero(flips.any(axis=1)):
        axes = np.flatnonzero(flips[n])
        images[n] = images[n].flip([1 + int(a) for a in axes])
        labels[n] = labels[n].flip([int(a) for a in axes])
    return images, labels


def _per_sample(values: Any, images: Tensor) -> Tensor:
    return torch.as_tensor(values, device=images.device, dtype=images.dtype).reshape(-1, *(1,) * (images.ndim - 1))


def _per_channel(values: Any, images: Tensor) -> Tensor:
    return torch.as_tensor(values, device=images.device, dtype=images.dtype).reshape(
        *values.shape, *(1,) * (images.ndim - 2)
    )
