"""From a specification to a network."""

import torch

from segpipe.networks.spec import NetworkSpec
from segpipe.networks.unet import UNet


def build_network(spec: NetworkSpec, n_channels: int, n_classes: int) -> UNet:
    """Build the planned network with fresh weights in torch's current random state."""
    return UNet(n_channels, n_classes, spec)


def to_device(network: UNet, device: torch.device) -> UNet:
    """Move a network to a device, in the memory format that convolutions are fastest in."""
    moved: UNet = network.to(device=device)
    return moved.to(memory_format=fast_memory_format(network.dims))  # type: ignore[call-overload,no-any-return]


def fast_memory_format(dims: int) -> torch.memory_format:
    """Channels-last: what convolutions are fastest in, measured on CPUs (docs/experiments.md), and by NVIDIA's advice on tensor cores."""
    return torch.channels_last_3d if dims == 3 else torch.channels_last
