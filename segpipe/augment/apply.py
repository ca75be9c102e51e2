"""Apply a drawn augmentation to a batch on its device. The deterministic half: the same draw gives the same batch.

Images are (N, C, ...) float32; labels are (N, ...) with -1 where there is no image. Each transform takes the samples or channels
that were drawn to, all at once.
"""

from collections.abc import Sequence
from functools import reduce
from itertools import combinations, product
from math import prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from segpipe.augment.draw import Draw
from segpipe.augment.spec import AugmentationSpec
from segpipe.execution.device import sent

_MIN_SPAN = 1e-7


def apply(images: Tensor, labels: Tensor, spec: AugmentationSpec, drawn: Draw) -> tuple[Tensor, Tensor]:
    """Augment a batch.

    Parameters
    ----------
    images : Tensor of float32
        (N, C, ...) of the source patch size.
    labels : Tensor of int16
        (N, L, ...) of the same size; the first is the segmentation, others move with it.
    spec : AugmentationSpec
    drawn : Draw

    Returns
    -------
    tuple of Tensor
        Images and labels of the spec's patch size; labels without -1.
    """
    images, labels, _ = apply_with(images, labels, None, spec, drawn)
    return images, labels.clamp_min(0)


def apply_with(
    images: Tensor, labels: Tensor, soft: Tensor | None, spec: AugmentationSpec, drawn: Draw
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Augment a batch, and move probabilities (N, K, ...) as its images are moved: linearly, 0 outside; labels keep their -1."""
    n_channels = images.shape[1]
    moved, labels = move(images if soft is None else torch.cat((images, soft), dim=1), labels, spec, drawn)
    if soft is not None:
        soft = flip(moved[:, n_channels:], drawn.flips)
    images = add_noise(moved[:, :n_channels], drawn)
    images = blur(images, drawn.blur_sigma)
    images = scale_brightness(images, drawn.brightness)
    images = scale_contrast(images, drawn.contrast)
    images = lower_resolution(images, drawn.zoom, in_plane=spec.in_plane)
    images = apply_gamma(images, drawn.gamma_inverted, inverted=True)
    images = apply_gamma(images, drawn.gamma, inverted=False)
    images, labels = flip(images, drawn.flips), flip(labels, drawn.flips)
    outside = labels[:, 0] < 0
    for channel in spec.masked_channels:
        images[:, channel] = images[:, channel].masked_fill(outside, 0)
    return images, labels, soft


def centre_crop(array: Tensor, patch: tuple[int, ...]) -> Tensor:
    """Cut the middle of the trailing axes."""
    for axis, p in enumerate(patch, start=array.ndim - len(patch)):
        array = array.narrow(axis, (array.shape[axis] - p) // 2, p)
    return array


def move(images: Tensor, labels: Tensor, spec: AugmentationSpec, drawn: Draw) -> tuple[Tensor, Tensor]:
    """Rotate, scale and deform the samples that were drawn to, cut the others out of the middle.

    One grid of positions serves images (linear, 0 outside) and labels (the label with the largest share, -1 outside).
    """
    moved_images, moved_labels = (
        centre_crop(images, spec.patch_size).clone(),
        centre_crop(labels, spec.patch_size).clone(),
    )
    if len(drawn.moved):
        which = sent(drawn.moved, images.device)
        positions = _positions(drawn.of(drawn.moved), images, spec)
        moved_images[which] = _in_planes(_sample, images[which], positions, spec)
        moved_labels[which] = _in_planes(_sample_labels, labels[which], positions, spec)
    return moved_images, moved_labels


def _positions(drawn: Draw, images: Tensor, spec: AugmentationSpec) -> Tensor:
    """Voxel of the source that each voxel of the patch is read at: (N, *patch, M) along the M axes that move."""
    moving = list(spec.moving)
    patch, source = [spec.patch_size[a] for a in moving], [images.shape[2 + a] for a in moving]
    floats: dict[str, Any] = {"device": images.device, "dtype": torch.float32}
    axes = [torch.arange(p, **floats) - (p - 1) / 2 for p in patch]
    offsets = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)
    matrices = sent(drawn.matrices[:, moving][:, :, moving], **floats)
    rows = matrices.reshape(len(matrices), *(1,) * len(patch), *matrices.shape[1:])
    read = (rows * offsets[None, ..., None, :]).sum(-1)
    if drawn.elastic.any():
        control = sent(drawn.elastic, **floats)
        splines = [_spline_basis(p, spec.elastic_grid) for p in patch]
        shift = along_axes(control.flatten(0, 1), splines)
        read = read + shift.reshape(*control.shape[:2], *patch).movedim(1, -1)
    return read + sent([(n - 1) / 2 for n in source], **floats)


def _spline_basis(n: int, grid: int) -> NDArray[np.float64]:
    """Uniform cubic B-splines: (n, control points), whose rows sum to 1."""
    where = np.arange(n) / grid
    first, t = np.floor(where).astype(int), where % 1
    shares = ((1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3)
    basis = np.zeros((n, -(-n // grid) + 3))
    for k, share in enumerate(shares):
        basis[np.arange(n), first + k] = share / 6
    return basis


def _in_planes(sample: Any, arrays: Tensor, positions: Tensor, spec: AugmentationSpec) -> Tensor:
    """Sample (N, C, ...) at positions; where only the last two axes move, slices become channels, which all move alike."""
    if not spec.in_plane:
        return sample(arrays, positions)  # type: ignore[no-any-return]
    slices = centre_crop(arrays, (spec.patch_size[0], *arrays.shape[3:]))
    sampled: Tensor = sample(slices.flatten(1, 2), positions)
    return sampled.reshape(*slices.shape[:3], *sampled.shape[2:])


def _sample(images: Tensor, positions: Tensor) -> Tensor:
    """Linear interpolation, 0 outside."""
    size = sent(images.shape[2:], images.device)
    # grid_sample counts from -1 to 1 over the whole source, x first.
    grid = ((2 * positions + 1) / size - 1).flip(-1)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def _sample_labels(labels: Tensor, positions: Tensor) -> Tensor:
    """Label with the largest share among the voxels around a position, the smaller of equals; -1 outside.

    The same as linear interpolation of each label's indicator, in time and memory that do not grow with the labels.
    """
    # A border of "no image", which positions further out read as well.
    size = labels.shape[2:]
    bordered = F.pad(labels, (1, 1) * len(size), value=-1).flatten(2)
    strides = [prod(n + 2 for n in size[axis + 1 :]) for axis in range(len(size))]
    low = positions.floor()
    up = positions - low
    limit = sent(size, labels.device)
    far = ((low < -1) | (low >= limit)).any(-1)
    corner = (torch.minimum(low.clamp_min(-1), limit - 1).long() + 1) * sent(strides, labels.device)
    first = corner.sum(-1).flatten(1)[:, None].expand(-1, labels.shape[1], -1)
    found, shares = [], []
    for steps in product((0, 1), repeat=len(size)):
        found.append(bordered.gather(2, first + sum(s * stride for s, stride in zip(steps, strides, strict=True))))
        parts = [up[..., axis] if step else 1 - up[..., axis] for axis, step in enumerate(steps)]
        shares.append(reduce(torch.mul, parts).flatten(1)[:, None] * (found[-1] >= 0))
    totals = [share.clone() for share in shares]
    for i, j in combinations(range(len(found)), 2):
        alike = found[i] == found[j]
        totals[i] += shares[j] * alike
        totals[j] += shares[i] * alike
    best, chosen = torch.zeros_like(totals[0]), torch.full_like(found[0], -1)
    for total, value in zip(totals, found, strict=True):
        better = (total > best) | ((total == best) & (total > 0) & (value < chosen))
        best, chosen = torch.where(better, total, best), torch.where(better, value, chosen)
    return chosen.reshape(*labels.shape[:2], *positions.shape[1:-1]).masked_fill(far[:, None], -1)


def add_noise(images: Tensor, drawn: Draw) -> Tensor:
    """Add Gaussian noise, one strength a sample, from a stream of its own: the same whoever else is in the batch."""
    for n in np.flatnonzero(drawn.noise_std):
        generator = torch.Generator(images.device).manual_seed(int(drawn.noise_seed[n]))
        noise = torch.randn(images.shape[1:], generator=generator, device=images.device)
        images[n] += noise * float(drawn.noise_std[n])
    return images


def blur(images: Tensor, sigmas: NDArray[np.float64]) -> Tensor:
    """Gaussian blur of the channels that were drawn to; the image is mirrored at its border."""

    def blurred(rows: Tensor, sigma: NDArray[np.float64]) -> Tensor:
        matrices = [
            np.stack([_blur_matrix(n, float(s)) for s in sigma[:, axis]]) for axis, n in enumerate(rows.shape[1:])
        ]
        return along_axes(rows, matrices)

    return _where_drawn(images, sigmas, (sigmas > 0).any(axis=2), blurred)


def _blur_matrix(n: int, sigma: float) -> NDArray[np.float64]:
    reach = min(max(int(3 * sigma + 0.5), 1), n - 1)
    matrix = np.zeros((n, n))
    if reach < 1:
        return np.eye(n)
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    for tap, weight in zip(range(-reach, reach + 1), weights / weights.sum(), strict=True):
        at = np.abs(np.arange(n) + tap)
        np.add.at(matrix, (np.arange(n), np.where(at >= n, 2 * (n - 1) - at, at)), weight)
    return matrix


def scale_brightness(images: Tensor, factors: NDArray[np.float64]) -> Tensor:
    """Multiply channels."""
    return _where_drawn(images, factors, factors != 1, lambda rows, factor: rows * _column(factor, rows))


def scale_contrast(images: Tensor, factors: NDArray[np.float64]) -> Tensor:
    """Stretch channels about their mean, kept within their old range."""

    def stretched(rows: Tensor, factor: NDArray[np.float64]) -> Tensor:
        low, high, mean = _statistic(torch.amin, rows), _statistic(torch.amax, rows), _statistic(torch.mean, rows)
        return ((rows - mean) * _column(factor, rows) + mean).clamp(low, high)

    return _where_drawn(images, factors, factors != 1, stretched)


def lower_resolution(images: Tensor, zoom: NDArray[np.float64], *, in_plane: bool) -> Tensor:
    """Sample channels down by nearest neighbour and up again linearly; the first axis stays where only in-plane moves."""

    def coarse(rows: Tensor, kept: NDArray[np.float64]) -> Tensor:
        matrices = [
            np.stack([_coarse_matrix(n, 1.0 if in_plane and axis == 0 else float(z)) for z in kept])
            for axis, n in enumerate(rows.shape[1:])
        ]
        return along_axes(rows, matrices)

    return _where_drawn(images, zoom, zoom != 1, coarse)


def _coarse_matrix(n: int, zoom: float) -> NDArray[np.float64]:
    """(n, n): nearest neighbour to fewer voxels, then linear to n again (torch's nearest-exact, and linear without aligned corners)."""
    small = max(round(n * zoom), 1)
    down = np.minimum(((np.arange(small) + 0.5) * n / small).astype(int), n - 1)
    at = np.maximum((np.arange(n) + 0.5) * small / n - 0.5, 0)
    low = at.astype(int)
    matrix = np.zeros((n, n))
    np.add.at(matrix, (np.arange(n), down[low]), 1 - at % 1)
    np.add.at(matrix, (np.arange(n), down[np.minimum(low + 1, small - 1)]), at % 1)
    return matrix


def apply_gamma(images: Tensor, exponents: NDArray[np.float64], *, inverted: bool) -> Tensor:
    """Raise channels, scaled to 0..1, to a power; mean and standard deviation are kept."""

    def bent(rows: Tensor, exponent: NDArray[np.float64]) -> Tensor:
        rows = -rows if inverted else rows
        low = _statistic(torch.amin, rows)
        span = _statistic(torch.amax, rows) - low
        curved = ((rows - low) / span.clamp_min(_MIN_SPAN)).pow(_column(exponent, rows)) * span + low
        (std, mean), (new_std, new_mean) = (
            torch.std_mean(a, dim=tuple(range(1, a.ndim)), keepdim=True) for a in (rows, curved)
        )
        curved = (curved - new_mean) / new_std.clamp_min(_MIN_SPAN) * std + mean
        return -curved if inverted else curved

    return _where_drawn(images, exponents, exponents != 1, bent)


def flip(arrays: Tensor, flips: NDArray[np.bool_]) -> Tensor:
    """Mirror samples (N, C, ...); twice is the identity."""
    for axis in np.flatnonzero(flips.any(axis=0)):
        which = sent(np.flatnonzero(flips[:, axis]), arrays.device)
        arrays[which] = arrays[which].flip(2 + int(axis))
    return arrays


def along_axes(rows: Tensor, matrices: Sequence[NDArray[np.floating]]) -> Tensor:
    """Multiply each axis of (M, ...) by its matrix, (new, old) for all rows alike or (M, new, old) for each."""
    for axis, matrix in enumerate(matrices, start=1):
        factor = sent(matrix, rows.device, rows.dtype)
        others = rows.movedim(axis, 1)
        multiplied = torch.matmul(factor, others.flatten(2) if others.ndim > 2 else others[..., None])
        rows = multiplied.reshape(len(rows), factor.shape[-2], *others.shape[2:]).movedim(1, axis)
    return rows


def _where_drawn(images: Tensor, values: NDArray[np.float64], drawn: Any, change: Any) -> Tensor:
    """Change the channels (rows) that were drawn to: ``change(rows (M, ...), their values (M, ...))``."""
    samples, channels = np.nonzero(drawn)
    if len(samples):
        where = sent(samples, images.device), sent(channels, images.device)
        images[where] = change(images[where], values[samples, channels])
    return images


def _statistic(of: Any, rows: Tensor) -> Tensor:
    return of(rows, dim=tuple(range(1, rows.ndim)), keepdim=True)  # type: ignore[no-any-return]


def _column(values: NDArray[np.float64], rows: Tensor) -> Tensor:
    return sent(values, rows.device, rows.dtype).reshape(-1, *(1,) * (rows.ndim - 1))
