"""Patch, batch and network of one configuration. Pure; nnU-Net 2's rules, or memory in bytes where a recipe or a network asks for it."""

from dataclasses import dataclass
from math import prod

import numpy as np

from segpipe.errors import PlanError
from segpipe.networks.spec import NetworkSpec
from segpipe.planning.design import Design
from segpipe.planning.topology import MIN_EDGE, Topology

_NEAR = 1.1
"""Patches up to this much larger than what should fit are weighed one by one."""


@dataclass(frozen=True)
class Sized:
    """What was chosen for one spacing, with the numbers behind it."""

    topology: Topology
    network: NetworkSpec
    batch_size: int
    batch_by_memory: int
    batch_by_dataset: int
    patches_tried: tuple[str, ...]
    """Each patch with its need and the budget, the last one that fits."""
    memory_gb: float


def size_configuration(median_shape: tuple[float, ...], dataset_voxels: float, design: Design) -> Sized:
    """Choose patch, network and batch so that a training step fits the memory budget.

    Parameters
    ----------
    median_shape : tuple of float
        Two or three axes.
    dataset_voxels : float
        Voxels of the whole dataset at the 3D target spacing.
    design : Design
        How the network follows from the patch, with the recipe's settings.

    Raises
    ------
    PlanError
        If not even the smallest patch fits the budget.
    """
    settings = design.settings
    topology = design.topology(initial_patch(design.spacing_mm, median_shape))
    fit = design.weigh(topology)
    tried = [f"{'x'.join(map(str, topology.patch_size))}: {fit.shown}"]
    while not fit.fits:
        smaller = None if max(topology.patch_size) <= MIN_EDGE else _shrink(topology, design, median_shape)
        if smaller is None:
            raise PlanError(
                f"budget of {design.budget_gb:g} GB: not even a patch of {topology.patch_size} fits ({fit.shown}); {design.advice}"
            )
        # Measuring takes seconds, so patches that are far too large are passed over.
        while prod(smaller.patch_size) > _NEAR * fit.share * prod(topology.patch_size):
            further = _shrink(smaller, design, median_shape)
            if further is None:
                break
            smaller = further
        topology = smaller
        fit = design.weigh(topology)
        tried.append(f"{'x'.join(map(str, topology.patch_size))}: {fit.shown}")
    by_dataset = round(dataset_voxels * settings.dataset_cover / prod(topology.patch_size))
    batch = max(min(fit.batch, by_dataset), settings.min_batch)
    batch = min(batch, settings.max_batch or batch)
    return Sized(topology, design.network(topology), batch, fit.batch, by_dataset, tuple(tried), fit.gb(batch))


def initial_patch(spacing_mm: tuple[float, ...], median_shape: tuple[float, ...]) -> tuple[float, ...]:
    """A box of equal physical edges (256^3 or 2048^2 voxels in all), cut to the median shape."""
    inverse = 1 / np.array(spacing_mm)
    dims = len(spacing_mm)
    volume = 256**3 if dims == 3 else 2048**2
    edges = [round(float(i)) for i in inverse * (volume / np.prod(inverse)) ** (1 / dims)]
    return tuple(float(min(e, m)) for e, m in zip(edges, median_shape, strict=True))


def _shrink(topology: Topology, design: Design, median_shape: tuple[float, ...]) -> Topology | None:
    """Take one pooling step off the axis that is longest relative to the median shape and can spare it; None where none can."""
    relative = np.array(topology.patch_size) / np.array(median_shape)
    for axis in np.argsort(relative, kind="stable")[::-1].tolist():
        # The step is what the poolings divide after the patch was made smaller, which may be less than before.
        probe = list(topology.patch_size)
        probe[axis] -= topology.divisors[axis]
        if probe[axis] < 1:
            continue
        patch = list(topology.patch_size)
        patch[axis] -= design.topology(tuple(probe)).divisors[axis]
        return design.topology(tuple(patch))
    return None
