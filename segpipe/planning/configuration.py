"""Patch, batch and network of one configuration. Pure; nnU-Net 2's rules."""

from dataclasses import dataclass
from math import prod

import numpy as np

from segpipe.networks.spec import NetworkSpec
from segpipe.planning.memory import activation_elements
from segpipe.planning.recipe import PlannerSettings
from segpipe.planning.topology import Topology, make_topology

_RESENC_BLOCKS = (1, 3, 4) + (6,) * 30


@dataclass(frozen=True)
class Sized:
    """What was chosen for one spacing, with the numbers behind it."""

    topology: Topology
    network: NetworkSpec
    batch_size: int
    batch_by_memory: int
    batch_by_dataset: int
    shrink_steps: int
    memory_gb: float


def size_configuration(
    spacing_mm: tuple[float, ...],
    median_shape: tuple[float, ...],
    dataset_voxels: float,
    n_label_entries: int,
    settings: PlannerSettings,
) -> Sized:
    """Choose patch, network and batch so that a training step fits the memory budget.

    Parameters
    ----------
    spacing_mm, median_shape : tuple of float
        Two or three axes.
    dataset_voxels : float
        Voxels of the whole dataset at the 3D target spacing.
    n_label_entries : int
        Entries in the label declaration.
    settings : PlannerSettings
        The recipe's.
    """
    dims = len(spacing_mm)
    reference_batch = settings.reference_batch_3d if dims == 3 else settings.reference_batch_2d
    reference = settings.reference_elements_3d if dims == 3 else settings.reference_elements_2d
    budget = reference * settings.budget_gb / settings.reference_gb

    topology = make_topology(spacing_mm, initial_patch(spacing_mm, median_shape))
    elements = _elements(topology, settings, n_label_entries)
    n_shrunk = 0
    while _needed(elements, reference_batch, settings) > budget:
        topology = _shrink(topology, spacing_mm, median_shape)
        elements = _elements(topology, settings, n_label_entries)
        n_shrunk += 1
    by_memory = round(budget / elements * reference_batch)
    by_dataset = round(dataset_voxels * settings.dataset_cover / prod(topology.patch_size))
    batch = max(min(by_memory, by_dataset), settings.min_batch)
    batch = min(batch, settings.max_batch or batch)
    memory_gb = elements * batch / reference_batch / reference * settings.reference_gb
    return Sized(topology, network_for(topology, settings), batch, by_memory, by_dataset, n_shrunk, memory_gb)


def initial_patch(spacing_mm: tuple[float, ...], median_shape: tuple[float, ...]) -> tuple[float, ...]:
    """A box of equal physical edges (256^3 or 2048^2 voxels in all), cut to the median shape."""
    inverse = 1 / np.array(spacing_mm)
    dims = len(spacing_mm)
    volume = 256**3 if dims == 3 else 2048**2
    edges = [round(float(i)) for i in inverse * (volume / np.prod(inverse)) ** (1 / dims)]
    return tuple(float(min(e, m)) for e, m in zip(edges, median_shape, strict=True))


def network_for(topology: Topology, settings: PlannerSettings) -> NetworkSpec:
    """Return the network of a topology: features double from stage to stage up to their limit."""
    n = topology.n_stages
    most = settings.max_features_3d if len(topology.patch_size) == 3 else settings.max_features_2d
    residual = settings.architecture == "resenc_unet"
    return NetworkSpec(
        architecture=settings.architecture,
        features=tuple(min(settings.base_features * 2**i, most) for i in range(n)),
        kernel_sizes=topology.kernel_sizes,
        strides=topology.strides,
        encoder_blocks=_RESENC_BLOCKS[:n] if residual else (2,) * n,
        decoder_convs=(1 if residual else 2,) * (n - 1),
    )


def _elements(topology: Topology, settings: PlannerSettings, n_label_entries: int) -> int:
    return activation_elements(network_for(topology, settings), topology.patch_size, n_label_entries)


def _needed(elements: int, reference_batch: int, settings: PlannerSettings) -> float:
    return elements if settings.patch_fits_reference_batch else elements / reference_batch * 2


def _shrink(topology: Topology, spacing_mm: tuple[float, ...], median_shape: tuple[float, ...]) -> Topology:
    """Take one pooling step off the axis that is longest relative to the median shape."""
    relative = np.array(topology.patch_size) / np.array(median_shape)
    axis = int(np.argsort(relative, kind="stable")[-1])
    # The step is what the poolings divide after the patch was made smaller, which may be less than before.
    probe = list(topology.patch_size)
    probe[axis] -= topology.divisors[axis]
    patch = list(topology.patch_size)
    patch[axis] -= make_topology(spacing_mm, tuple(probe)).divisors[axis]
    return make_topology(spacing_mm, tuple(patch))
