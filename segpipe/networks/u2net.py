"""U²-Net and U²-Netp, in 2D and 3D.

Source: Qin et al., Pattern Recognition 106:107404, 2020 (arXiv 2005.09007). What differs: logits are returned and not their
sigmoid, and pooling is along the axes that the plan pools; the 3D form is the same table with three axes.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from segpipe.networks.blocks import Stride, conv_class, initialise, make_norm, max_pool_class, upsampled
from segpipe.networks.segmenter import Segmenter
from segpipe.networks.spec import NetworkSpec, Norm

DEPTH = 5
"""Poolings between the six encoder stages, and at most inside one of them."""

# (inner, outer) feature maps of the encoder stages, and of the decoder stages from full resolution down.
_ENCODER = {
    "u2net": ((32, 64), (32, 128), (64, 256), (128, 512), (256, 512), (256, 512)),
    "u2netp": ((16, 64),) * 6,
}
_DECODER = {
    "u2net": ((16, 64), (32, 64), (64, 128), (128, 256), (256, 512)),
    "u2netp": ((16, 64),) * 5,
}


class ConvNormReLU(nn.Module):
    """Convolution of kernel 3, normalisation, ReLU; the shape stays."""

    def __init__(self, c_in: int, c_out: int, dims: int, norm: Norm, dilation: int = 1) -> None:
        super().__init__()
        self.conv = conv_class(dims)(c_in, c_out, 3, padding=dilation, dilation=dilation)
        self.norm = make_norm(norm, c_out, dims)

    def forward(self, x: Tensor) -> Tensor:
        """(N, c_in, ...) to (N, c_out, ...)."""
        return F.relu(self.norm(self.conv(x)), inplace=True)


class ResidualU(nn.Module):
    """RSU: a small U-Net whose output is added to its first convolution's.

    ``pools`` are the poolings between its levels; where there are none, dilations widen the view instead (RSU-4F).
    """

    def __init__(
        self, c_in: int, c_mid: int, c_out: int, pools: tuple[Stride, ...], dilations: tuple[int, ...], norm: Norm
    ) -> None:
        """Build the block.

        Parameters
        ----------
        c_in, c_mid, c_out : int
            Feature maps.
        pools : tuple
            Before every level but the first; the bottom is not pooled further.
        dilations : tuple of int
            One a level, the bottom's last.
        norm : str
        """
        super().__init__()
        dims, n = len(pools[0]), len(dilations) - 1
        self.first = ConvNormReLU(c_in, c_out, dims, norm)
        self.down = nn.ModuleList(
            ConvNormReLU(c_mid if i else c_out, c_mid, dims, norm, dilations[i]) for i in range(n)
        )
        self.pools = nn.ModuleList(max_pool_class(dims)(pool, pool, ceil_mode=True) for pool in pools)
        self.bottom = ConvNormReLU(c_mid, c_mid, dims, norm, dilations[n])
        self.up = nn.ModuleList(
            ConvNormReLU(2 * c_mid, c_mid if i else c_out, dims, norm, dilations[i]) for i in range(n)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, c_in, ...) to (N, c_out, ...)."""
        first: Tensor = self.first(x)
        x, maps = first, []
        for level, down in enumerate(self.down):
            x = down(self.pools[level - 1](x) if level else x)
            maps.append(x)
        x = self.bottom(x)
        for skip, up in zip(reversed(maps), reversed(self.up), strict=True):
            x = up(torch.cat((upsampled(x, tuple(skip.shape[2:])), skip), dim=1))
        return first + x


class U2Net(Segmenter):
    """A U-Net of residual U-blocks; the outputs of all resolutions are fused, and each enters the loss."""

    def __init__(self, c_in: int, c_out: int, spec: NetworkSpec) -> None:
        super().__init__(spec.dims, spec.divisors)
        dims, pools = spec.dims, spec.strides[1:]
        width = float(spec.options.get("width", 1.0))  # type: ignore[arg-type]
        encoder, decoder = (
            [(max(round(width * mid), 1), max(round(width * out), 1)) for mid, out in table[spec.architecture]]
            for table in (_ENCODER, _DECODER)
        )

        def block(level: int, before: int, mid: int, out: int) -> ResidualU:
            if level >= DEPTH - 1:
                return ResidualU(before, mid, out, ((1,) * dims,) * 2, (1, 2, 4, 8), spec.norm)
            inner = pools[level:]
            return ResidualU(before, mid, out, inner, (1,) * (len(inner) + 1) + (2,), spec.norm)

        widths = [c_in, *(out for _, out in encoder)]
        self.encoder = nn.ModuleList(block(level, widths[level], mid, out) for level, (mid, out) in enumerate(encoder))
        self.pools = nn.ModuleList(max_pool_class(dims)(pool, pool, ceil_mode=True) for pool in pools)
        below = [*(out for _, out in decoder[1:]), encoder[-1][1]]
        self.decoder = nn.ModuleList(
            block(level, below[level] + encoder[level][1], mid, out) for level, (mid, out) in enumerate(decoder)
        )
        sides = [*(out for _, out in decoder), encoder[-1][1]]
        self.sides = nn.ModuleList(conv_class(dims)(out, c_out, 3, padding=1) for out in sides)
        self.fuse = conv_class(dims)(len(sides) * c_out, c_out, 1)
        initialise(self, slope=0.0)

    def logits(self, x: Tensor, *, every: bool) -> list[Tensor]:
        """See :meth:`Segmenter.logits`; the fused output, then the sides from full resolution down, all at full resolution."""
        shape = tuple(x.shape[2:])
        maps: list[Tensor] = []
        for level, stage in enumerate(self.encoder):
            x = stage(self.pools[level - 1](x) if level else x)
            maps.append(x)
        outputs = [maps.pop()]
        for skip, stage in zip(reversed(maps), reversed(self.decoder), strict=True):
            outputs.append(stage(torch.cat((upsampled(outputs[-1], tuple(skip.shape[2:])), skip), dim=1)))
        sides = [upsampled(side(m), shape) for side, m in zip(self.sides, reversed(outputs), strict=True)]
        fused = self.fuse(torch.cat(sides, dim=1))
        return [fused, *sides] if every else [fused]

    def head_weights(self, n: int) -> list[float]:
        """All alike, as in the paper, which sums them; here they sum to 1."""
        return [1 / n] * n


def build(spec: NetworkSpec, n_channels: int, n_outputs: int) -> U2Net:
    """Build the planned U²-Net."""
    return U2Net(n_channels, n_outputs, spec)
