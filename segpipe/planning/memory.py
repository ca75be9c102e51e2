"""Size of a network's activations, in closed form: no network is built.

Counts the elements of every convolution's output for one sample, as nnU-Net's planner does by instantiating the
network. Input channels, normalisation buffers and number type do not enter.
"""

from math import prod

from segpipe.networks.spec import NetworkSpec


def activation_elements(network: NetworkSpec, patch: tuple[int, ...], n_label_entries: int) -> int:
    """Convolution output elements of one sample without deep supervision."""
    sizes = _stage_sizes(network, patch)
    features, blocks = network.features, network.encoder_blocks
    last = len(sizes) - 1
    decoder = sum((network.decoder_convs[last - 1 - i] + 1) * features[i] * sizes[i] for i in range(last))
    head = n_label_entries * sizes[0]
    if network.architecture == "plain_unet":
        encoder = sum(n * f * s for n, f, s in zip(blocks, features, sizes, strict=True))
    else:
        stem = features[0] * prod(patch)
        bodies = sum(2 * n * f * s for n, f, s in zip(blocks, features, sizes, strict=True))
        projections = sum(f * s for f, s in zip(features[1:], sizes[1:], strict=True))
        encoder = stem + bodies + projections
    return encoder + decoder + head


def _stage_sizes(network: NetworkSpec, patch: tuple[int, ...]) -> list[int]:
    sizes, size = [], list(patch)
    for stride in network.strides:
        size = [n // s for n, s in zip(size, stride, strict=True)]
        sizes.append(prod(size))
    return sizes
