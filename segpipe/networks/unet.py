"""The planned U-Nets, plain and with a residual encoder, in 2D and 3D.

Source: Isensee et al., Nature Methods 18:203-211, 2021; residual encoder: Isensee et al., MICCAI 2024 (arXiv 2404.09556).
State-dict names are nnU-Net's without its aliases.
"""

from math import prod

import torch
from torch import Tensor, nn

from segpipe.networks.blocks import ConvStack, ResidualStack, conv_class, initialise, transposed_class
from segpipe.networks.segmenter import Segmenter
from segpipe.networks.spec import NetworkSpec


class PlainEncoder(nn.Module):
    """Stages of plain convolutions."""

    def __init__(self, c_in: int, spec: NetworkSpec) -> None:
        super().__init__()
        widths = (c_in, *spec.features)
        # Each stage sits in a Sequential of its own because nnU-Net's names have that extra index.
        self.stages = nn.ModuleList(
            nn.Sequential(ConvStack(widths[i], widths[i + 1], spec.kernel_sizes[i], spec.strides[i], n, spec.norm))
            for i, n in enumerate(spec.encoder_blocks)
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        """Feature maps of every stage, highest resolution first."""
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps


class ResidualEncoder(nn.Module):
    """A stem and stages of residual blocks."""

    def __init__(self, c_in: int, spec: NetworkSpec) -> None:
        super().__init__()
        first = spec.features[0]
        self.stem = ConvStack(c_in, first, spec.kernel_sizes[0], (1,) * spec.dims, 1, spec.norm)
        widths = (first, *spec.features)
        self.stages = nn.ModuleList(
            ResidualStack(widths[i], widths[i + 1], spec.kernel_sizes[i], spec.strides[i], n, spec.norm)
            for i, n in enumerate(spec.encoder_blocks)
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        """Feature maps of every stage, highest resolution first."""
        x = self.stem(x)
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps


class Decoder(nn.Module):
    """Upsample, join the skip, convolve; a segmentation head at each resolution, lowest first."""

    def __init__(self, c_out: int, spec: NetworkSpec) -> None:
        super().__init__()
        transposed = transposed_class(spec.dims)
        conv = conv_class(spec.dims)
        ups: list[nn.Module] = []
        stages: list[nn.Module] = []
        heads: list[nn.Module] = []
        for i in range(len(spec.features) - 1):
            level = len(spec.features) - 2 - i
            below, here = spec.features[level + 1], spec.features[level]
            stride = spec.strides[level + 1]
            ups.append(transposed(below, here, stride, stride, bias=True))
            ones = (1,) * spec.dims
            stages.append(ConvStack(2 * here, here, spec.kernel_sizes[level], ones, spec.decoder_convs[i], spec.norm))
            heads.append(conv(here, c_out, 1, bias=True))
        self.transpconvs, self.stages, self.seg_layers = nn.ModuleList(ups), nn.ModuleList(stages), nn.ModuleList(heads)

    def forward(self, maps: list[Tensor], n_heads: int) -> list[Tensor]:
        """Logits of the ``n_heads`` highest resolutions, highest first."""
        x, logits = maps[-1], []
        n = len(self.stages)
        for i, (up, stage, head) in enumerate(zip(self.transpconvs, self.stages, self.seg_layers, strict=True)):
            x = stage(torch.cat((up(x), maps[-2 - i]), dim=1))
            if i >= n - n_heads:
                logits.append(head(x))
        return logits[::-1]


class UNet(Segmenter):
    """A planned U-Net."""

    def __init__(self, c_in: int, c_out: int, spec: NetworkSpec) -> None:
        divisors = tuple(prod(stride[axis] for stride in spec.strides) for axis in range(spec.dims))
        super().__init__(spec.dims, divisors)
        self.encoder: nn.Module = (
            PlainEncoder(c_in, spec) if spec.architecture == "plain_unet" else ResidualEncoder(c_in, spec)
        )
        self.decoder = Decoder(c_out, spec)
        # The lowest resolution carries no loss when there is more than one (nnU-Net's deep supervision).
        self.n_supervised = max(len(spec.features) - 2, 1)
        initialise(self)
        for head in self.decoder.seg_layers[: len(spec.features) - 1 - self.n_supervised]:
            head.requires_grad_(requires_grad=False)

    def logits(self, x: Tensor, *, every: bool) -> list[Tensor]:
        """See :meth:`Segmenter.logits`."""
        found: list[Tensor] = self.decoder(self.encoder(x), self.n_supervised if every else 1)
        return found


def build(spec: NetworkSpec, n_channels: int, n_outputs: int) -> UNet:
    """Build the planned U-Net."""
    return UNet(n_channels, n_outputs, spec)
