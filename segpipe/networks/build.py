"""From a specification to a network."""

from importlib import import_module

import torch

from segpipe.errors import NetworkError
from segpipe.networks.blocks import with_exact_convolutions
from segpipe.networks.catalogue import architecture_of
from segpipe.networks.segmenter import Segmenter
from segpipe.networks.spec import NetworkSpec


def build_network(spec: NetworkSpec, n_channels: int, n_classes: int) -> Segmenter:
    """Build the planned network with fresh weights in torch's current random state.

    Raises
    ------
    NetworkError
        If it is of a package that is not installed here, or cannot be built as planned.
    """
    try:
        module, _, function = architecture_of(spec.architecture).builder.partition(":")
    except NetworkError as error:
        if spec.package is None:
            raise
        raise NetworkError(
            f"network {spec.architecture!r}: is of the package {spec.package}, which is not installed here; install it"
        ) from error
    network: Segmenter = getattr(import_module(module), function)(spec, n_channels, n_classes)
    with_exact_convolutions(network)
    return network


def to_device(network: Segmenter, device: torch.device) -> Segmenter:
    """Move a network to a device, in the memory format that convolutions are fastest in."""
    moved: Segmenter = network.to(device=device)
    return moved.to(memory_format=fast_memory_format(network.dims))  # type: ignore[call-overload,no-any-return]


def fast_memory_format(dims: int) -> torch.memory_format:
    """Channels-last: what convolutions are fastest in, measured on CPUs (docs/experiments.md), and by NVIDIA's advice on tensor cores."""
    return torch.channels_last_3d if dims == 3 else torch.channels_last
