"""TernausNet: a U-Net whose encoder is VGG-11, in 2D and 3D.

Source: Iglovikov and Shvets 2018 (arXiv 1801.05746); the encoder is Simonyan and Zisserman 2015 without normalisation. What differs: the
poolings are along the axes that the plan pools (all five, along all axes, in the original).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from segpipe.networks.blocks import Stride, conv_class, initialise, max_pool_class, transposed_class
from segpipe.networks.segmenter import Segmenter, colour_to_channels
from segpipe.networks.spec import NetworkSpec

DEPTH = 5
"""Poolings."""
_ENCODER = ((64,), (128,), (256, 256), (512, 512), (512, 512))
_NUMBERS = (("0",), ("3",), ("6", "8"), ("11", "13"), ("16", "18"))
"""Numbers of the same convolutions in torchvision's VGG-11, so that its weights load."""
# (input, inner, output) of the centre and of the blocks that upsample, deepest first; inputs hold the skip.
_DECODER = ((512, 512, 256), (768, 512, 256), (768, 512, 128), (384, 256, 64), (192, 128, 32))


class Upward(nn.Module):
    """A convolution, and a transposed one that undoes a pooling."""

    def __init__(self, c_in: int, c_mid: int, c_out: int, stride: Stride) -> None:
        super().__init__()
        self.conv = conv_class(len(stride))(c_in, c_mid, 3, padding=1)
        self.up = transposed_class(len(stride))(
            c_mid, c_out, 3, stride, padding=1, output_padding=tuple(s - 1 for s in stride)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, c_in, ...) to (N, c_out, larger)."""
        return F.relu(self.up(F.relu(self.conv(x), inplace=True)), inplace=True)


class TernausNet(Segmenter):
    """VGG-11 down, transposed convolutions up, the last convolution of each resolution as its skip."""

    def __init__(self, c_in: int, c_out: int, spec: NetworkSpec) -> None:
        super().__init__(spec.dims, spec.divisors)
        dims, pools, conv = spec.dims, spec.strides[1:], conv_class(spec.dims)
        self.features, before = nn.ModuleDict(), c_in
        for widths, numbers in zip(_ENCODER, _NUMBERS, strict=True):
            for width, number in zip(widths, numbers, strict=True):
                self.features[number] = conv(before, width, 3, padding=1)
                before = width
        self.pools = nn.ModuleList(max_pool_class(dims)(pool, pool) for pool in pools)
        self.ups = nn.ModuleList(Upward(*widths, pool) for widths, pool in zip(_DECODER, reversed(pools), strict=True))
        self.last = conv(96, 32, 3, padding=1)
        self.head = conv(32, c_out, 1)
        initialise(self, slope=0.0)

    def logits(self, x: Tensor, *, every: bool) -> list[Tensor]:
        """See :meth:`Segmenter.logits`."""
        skips = []
        for numbers, pool in zip(_NUMBERS, self.pools, strict=True):
            for number in numbers:
                x = F.relu(self.features[number](x), inplace=True)
            skips.append(x)
            x = pool(x)
        x = self.ups[0](x)
        for up, skip in zip(self.ups[1:], reversed(skips[1:]), strict=True):
            x = up(torch.cat((x, skip), dim=1))
        return [self.head(F.relu(self.last(torch.cat((x, skips[0]), dim=1)), inplace=True))]

    def fit_pretrained(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Fit VGG-11's weights: its first convolution sees colours, its classifier is left out."""
        fitted = {name: w for name, w in weights.items() if not name.startswith("classifier.")}
        first, own = weights.get("features.0.weight"), next(iter(self.features.values())).weight
        if (
            first is not None
            and isinstance(own, Tensor)
            and first.ndim == own.ndim
            and first.shape[1] == 3 != own.shape[1]
        ):
            fitted["features.0.weight"] = colour_to_channels(first, own.shape[1])
        return fitted


def build(spec: NetworkSpec, n_channels: int, n_outputs: int) -> TernausNet:
    """Build the planned TernausNet."""
    return TernausNet(n_channels, n_outputs, spec)
