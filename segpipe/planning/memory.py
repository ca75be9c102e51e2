"""Size of a network in training, in closed form: no network is built.

Two estimates. Elements: every convolution's output for one sample, as nnU-Net's planner counts by instantiating the network; input
channels, normalisation, parameters and number type do not enter. Bytes: what torch keeps of a training step until its backward pass.
"""

from dataclasses import dataclass
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


@dataclass(frozen=True)
class TrainingBytes:
    """Memory of a training step: ``fixed + batch * per_sample``."""

    fixed: int
    """Parameters, their gradients and momentum, in float32."""
    kept: int
    """What is kept of one sample for the backward pass."""
    working: int
    """Gradients of one sample that are alive at once where the maps are largest."""

    @property
    def per_sample(self) -> int:
        """Bytes of one sample of a batch."""
        return self.kept + self.working


def training_bytes(
    network: NetworkSpec, patch: tuple[int, ...], n_channels: int, n_outputs: int, activation_bytes: int
) -> TrainingBytes:
    """Bytes of a training step with deep supervision.

    A convolution with normalisation and activation keeps two tensors: its output, which the normalisation's backward pass
    needs, and the activation, which is computed in place.
    """
    sizes, features = _stage_sizes(network, patch), network.features
    last = len(sizes) - 1
    stage = [f * s for f, s in zip(features, sizes, strict=True)]
    if network.architecture == "plain_unet":
        kept = sum(2 * n * e for n, e in zip(network.encoder_blocks, stage, strict=True))
    else:
        stem = 2 * features[0] * prod(patch)
        blocks = sum(4 * n * e for n, e in zip(network.encoder_blocks, stage, strict=True))
        # The shortcut that changes channels keeps its pooled input and its convolution's output.
        shortcuts = sum((features[i - 1] + features[i]) * sizes[i] for i in range(1, last + 1))
        kept = stem + blocks + shortcuts
    # A decoder stage keeps the joined skip and upsampled maps, and two tensors a convolution.
    kept += sum((2 + 2 * network.decoder_convs[last - 1 - i]) * stage[i] for i in range(last))
    # Logits of each supervised resolution: as they are, in float32, as probabilities and as log-probabilities, and their overlap.
    logits = sum(n_outputs * s for s in sizes[: max(last - 1, 1)])
    image = n_channels * prod(patch)
    return TrainingBytes(
        fixed=12 * _n_parameters(network, n_channels, n_outputs),
        kept=activation_bytes * (kept + image) + 4 * _LOGITS_COPIES * logits,
        # Of the joined maps at full resolution, and of what they are computed from.
        working=activation_bytes * 4 * stage[0],
    )


_LOGITS_COPIES = 4


def _n_parameters(network: NetworkSpec, n_channels: int, n_outputs: int) -> int:
    features, kernels = network.features, [prod(k) for k in network.kernel_sizes]
    last = len(features) - 1

    def conv(c_in: int, c_out: int, kernel: int) -> int:
        return c_out * (c_in * kernel + 3)  # bias, and the normalisation's scale and shift

    total = 0
    residual = network.architecture != "plain_unet"
    before = n_channels
    if residual:
        total += conv(n_channels, features[0], kernels[0])
        before = features[0]
    for width, kernel, n in zip(features, kernels, network.encoder_blocks, strict=True):
        n_convs = 2 * n if residual else n
        total += conv(before, width, kernel) + (n_convs - 1) * conv(width, width, kernel)
        if residual and before != width:
            total += width * (before + 2)
        before = width
    for i in range(last):
        total += features[i] * (features[i + 1] * prod(network.strides[i + 1]) + 1)
        convs = network.decoder_convs[last - 1 - i]
        total += conv(2 * features[i], features[i], kernels[i]) + (convs - 1) * conv(
            features[i], features[i], kernels[i]
        )
        total += n_outputs * (features[i] + 1)
    return total


def _stage_sizes(network: NetworkSpec, patch: tuple[int, ...]) -> list[int]:
    sizes, size = [], list(patch)
    for stride in network.strides:
        size = [n // s for n, s in zip(size, stride, strict=True)]
        sizes.append(prod(size))
    return sizes
