"""Patch, batch and network of one configuration. Pure; nnU-Net 2's rules, or memory in bytes where a recipe asks for it."""

from collections.abc import Callable
from dataclasses import dataclass
from math import prod

import numpy as np

from segpipe.errors import PlanError
from segpipe.networks.spec import NetworkSpec
from segpipe.planning.memory import activation_elements, training_bytes
from segpipe.planning.recipe import PlannerSettings
from segpipe.planning.topology import MIN_EDGE, Topology, make_topology

_RESENC_BLOCKS = (1, 3, 4) + (6,) * 30


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


@dataclass(frozen=True)
class Channels:
    """Of a dataset, as far as memory depends on them."""

    inputs: int
    outputs: int
    label_entries: int
    """Entries in the label declaration, which nnU-Net counts."""


@dataclass(frozen=True)
class Fit:
    """A network's need against the budget, in one of the two ways to estimate it."""

    fits: bool
    batch: int
    """Largest batch that the budget holds."""
    gb: Callable[[int], float]
    """Memory of a batch size."""
    shown: str


def size_configuration(
    spacing_mm: tuple[float, ...],
    median_shape: tuple[float, ...],
    dataset_voxels: float,
    channels: Channels,
    settings: PlannerSettings,
) -> Sized:
    """Choose patch, network and batch so that a training step fits the memory budget.

    Parameters
    ----------
    spacing_mm, median_shape : tuple of float
        Two or three axes.
    dataset_voxels : float
        Voxels of the whole dataset at the 3D target spacing.
    channels : Channels
    settings : PlannerSettings
        The recipe's.

    Raises
    ------
    PlanError
        If not even the smallest patch fits the budget.
    """
    weigh = _by_bytes if settings.memory == "bytes" else _by_elements
    topology = make_topology(spacing_mm, initial_patch(spacing_mm, median_shape))
    fit = weigh(topology, channels, settings)
    tried = [f"{'x'.join(map(str, topology.patch_size))}: {fit.shown}"]
    while not fit.fits:
        if max(topology.patch_size) <= MIN_EDGE:
            raise PlanError(
                f"budget of {settings.budget_gb:g} GB: not even a patch of {topology.patch_size} fits ({fit.shown}); "
                "give a larger --budget-gb or a recipe with fewer features"
            )
        topology = _shrink(topology, spacing_mm, median_shape)
        fit = weigh(topology, channels, settings)
        tried.append(f"{'x'.join(map(str, topology.patch_size))}: {fit.shown}")
    by_dataset = round(dataset_voxels * settings.dataset_cover / prod(topology.patch_size))
    batch = max(min(fit.batch, by_dataset), settings.min_batch)
    batch = min(batch, settings.max_batch or batch)
    network = network_for(topology, settings)
    return Sized(topology, network, batch, fit.batch, by_dataset, tuple(tried), fit.gb(batch))


def _by_elements(topology: Topology, channels: Channels, settings: PlannerSettings) -> Fit:
    """nnU-Net's rule: convolution outputs against a reference that fills a known GPU."""
    flat = len(topology.patch_size) == 2
    reference_batch = settings.reference_batch_2d if flat else settings.reference_batch_3d
    reference = settings.reference_elements_2d if flat else settings.reference_elements_3d
    budget = reference * settings.budget_gb / settings.reference_gb
    elements = activation_elements(network_for(topology, settings), topology.patch_size, channels.label_entries)
    needed = elements if settings.patch_fits_reference_batch else elements / reference_batch * 2
    return Fit(
        fits=needed <= budget,
        batch=round(budget / elements * reference_batch),
        gb=lambda batch: elements * batch / reference_batch / reference * settings.reference_gb,
        shown=f"{needed / 1e6:.1f} of {budget / 1e6:.1f} million elements",
    )


def _by_bytes(topology: Topology, channels: Channels, settings: PlannerSettings) -> Fit:
    """What a training step holds, against the budget itself."""
    budget = settings.budget_gb * 1e9
    need = training_bytes(
        network_for(topology, settings),
        topology.patch_size,
        channels.inputs,
        channels.outputs,
        settings.activation_bytes,
    )
    smallest = (need.fixed + settings.min_batch * need.per_sample) / 1e9
    return Fit(
        fits=smallest <= settings.budget_gb,
        batch=max(int((budget - need.fixed) // need.per_sample), 0),
        gb=lambda batch: (need.fixed + batch * need.per_sample) / 1e9,
        shown=f"{smallest:.2f} of {settings.budget_gb:g} GB for a batch of {settings.min_batch}",
    )


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
