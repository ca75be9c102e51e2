"""Depth, strides and kernels of a network from spacing and patch. Pure.

Source: nnU-Net 2 (Isensee et al., Nature Methods 18:203-211, 2021), whose rules are kept exactly.
"""

from dataclasses import dataclass
from math import ceil

MIN_EDGE = 4
"""No axis is pooled below this many voxels."""


@dataclass(frozen=True)
class Topology:
    """Strides and kernels of each stage, first stage first, and the patch that they divide."""

    patch_size: tuple[int, ...]
    strides: tuple[tuple[int, ...], ...]
    kernel_sizes: tuple[tuple[int, ...], ...]
    divisors: tuple[int, ...]

    @property
    def n_stages(self) -> int:
        """Number of resolutions."""
        return len(self.strides)


def make_topology(
    spacing_mm: tuple[float, ...],
    patch: tuple[float, ...],
    *,
    poolings: int | None = None,
    min_edge: int = MIN_EDGE,
    largest_divisor: int | None = None,
) -> Topology:
    """Pool while an axis is long enough and among the finest; then pad the patch to what the poolings divide.

    Parameters
    ----------
    spacing_mm : tuple of float
        Target spacing.
    patch : tuple of float
        Patch before padding; a median shape may leave half voxels in it, which count as they are.
    poolings : int, optional
        Number of poolings, if the network has a fixed one: where no axis is left, none is pooled. As many as the axes allow unless given.
    min_edge : int
        No axis is pooled below this many voxels.
    largest_divisor : int, optional
        Pad to multiples of what the poolings divide, but of no more than this.
    """
    dims = len(patch)
    spacing, size = list(spacing_mm), [float(p) for p in patch]
    kernel = [1] * dims
    n_pools = [0] * dims
    strides: list[tuple[int, ...]] = [(1,) * dims]
    kernels: list[tuple[int, ...]] = []
    while (poolings is None or len(kernels) < poolings) and (pooled := _axes_to_pool(spacing, size, min_edge)):
        for axis in range(dims):
            if spacing[axis] / min(spacing) < 2:
                kernel[axis] = 3
        strides.append(tuple(2 if axis in pooled else 1 for axis in range(dims)))
        kernels.append(tuple(kernel))
        for axis in pooled:
            n_pools[axis] += 1
            spacing[axis] *= 2
            size[axis] = ceil(size[axis] / 2)
    for _ in range(len(kernels), poolings or 0):
        strides.append((1,) * dims)
        kernels.append(tuple(kernel))
    kernels.append((3,) * dims)
    divisors = tuple(min(2**n, largest_divisor or 2**n) for n in n_pools)
    padded = tuple(ceil(p / d) * d for p, d in zip(patch, divisors, strict=True))
    return Topology(padded, tuple(strides), tuple(kernels), divisors)


def _axes_to_pool(spacing: list[float], size: list[float], min_edge: int) -> list[int]:
    long_enough = [a for a in range(len(size)) if size[a] >= 2 * min_edge]
    if not long_enough:
        return []
    finest = min(spacing[a] for a in long_enough)
    axes = [a for a in long_enough if spacing[a] / finest < 2]
    # A single axis is only pooled while it leaves a feature map longer than the minimum.
    if len(axes) == 1 and size[axes[0]] < 3 * min_edge:
        return []
    return axes
