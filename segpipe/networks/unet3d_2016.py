"""The 3D U-Net of 2016, in 3D and 2D.

Source: Çiçek et al., MICCAI 2016, LNCS 9901:424-432 (arXiv 1606.06650). What differs: convolutions are padded, so that the output is
as large as the input, and pooling is along the axes that the plan pools.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from segpipe.networks.blocks import conv_class, initialise, make_norm, max_pool_class, transposed_class
from segpipe.networks.segmenter import Segmenter
from segpipe.networks.spec import NetworkSpec, Norm

DEPTH = 3
"""Poolings."""


class Pair(nn.Module):
    """Two convolutions of kernel 3 with normalisation and ReLU."""

    def __init__(self, c_in: int, c_mid: int, c_out: int, dims: int, norm: Norm) -> None:
        super().__init__()
        conv = conv_class(dims)
        self.conv1, self.norm1 = conv(c_in, c_mid, 3, padding=1), make_norm(norm, c_mid, dims)
        self.conv2, self.norm2 = conv(c_mid, c_out, 3, padding=1), make_norm(norm, c_out, dims)

    def forward(self, x: Tensor) -> Tensor:
        """(N, c_in, ...) to (N, c_out, ...)."""
        x = F.relu(self.norm1(self.conv1(x)), inplace=True)
        return F.relu(self.norm2(self.conv2(x)), inplace=True)


class UNet2016(Segmenter):
    """Four resolutions; channels double before each pooling."""

    def __init__(self, c_in: int, c_out: int, spec: NetworkSpec) -> None:
        super().__init__(spec.dims, spec.divisors)
        dims, norm, pools = spec.dims, spec.norm, spec.strides[1:]
        width = float(spec.options.get("width", 1.0))  # type: ignore[arg-type]
        w = [max(round(width * 32 * 2**i), 1) for i in range(DEPTH + 2)]
        self.down = nn.ModuleList(Pair(c_in if i == 0 else w[i], w[i], w[i + 1], dims, norm) for i in range(DEPTH + 1))
        self.pools = nn.ModuleList(max_pool_class(dims)(pool, pool) for pool in pools)
        levels = range(DEPTH - 1, -1, -1)
        self.transposed = nn.ModuleList(
            transposed_class(dims)(w[i + 2], w[i + 2], pools[i], pools[i], bias=False) for i in levels
        )
        self.up = nn.ModuleList(Pair(w[i + 2] + w[i + 1], w[i + 1], w[i + 1], dims, norm) for i in levels)
        self.head = conv_class(dims)(w[1], c_out, 1)
        initialise(self, slope=0.0)

    def logits(self, x: Tensor, *, every: bool) -> list[Tensor]:
        """See :meth:`Segmenter.logits`."""
        maps = []
        for level, stage in enumerate(self.down):
            x = stage(self.pools[level - 1](x) if level else x)
            maps.append(x)
        for enlarge, stage, skip in zip(self.transposed, self.up, reversed(maps[:-1]), strict=True):
            x = stage(torch.cat((enlarge(x), skip), dim=1))
        return [self.head(x)]


def build(spec: NetworkSpec, n_channels: int, n_outputs: int) -> UNet2016:
    """Build the planned network."""
    return UNet2016(n_channels, n_outputs, spec)
