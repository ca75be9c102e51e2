"""Building blocks. Parameter names follow nnU-Net's, so that its weights load."""

from math import gcd
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from segpipe.networks.spec import Norm

Stride = tuple[int, ...]


def conv_class(dims: int) -> Any:
    """Convolution of 2 or 3 axes."""
    return {2: nn.Conv2d, 3: nn.Conv3d}[dims]


class ExactConv3d(nn.Conv3d):
    """Convolution in float32 where torch's in bfloat16 on a CPU is wrong.

    There the weight's gradient holds memory that was never written, if the first axis is no longer than the kernel (seen with torch
    2.13 and oneDNN; docs/experiments.md lists the shapes). Such maps are small: computing them in float32 costs next to nothing.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, Z, Y, X) to (N, C', ...)."""
        if x.device.type != "cpu" or not 1 < x.shape[2] <= self.kernel_size[0]:
            return super().forward(x)
        with torch.autocast("cpu", enabled=False):
            return super().forward(x.to(self.weight.dtype))


def with_exact_convolutions(network: nn.Module) -> None:
    """Make every 3D convolution of a network an :class:`ExactConv3d`; names, weights and results stay."""
    for module in network.modules():
        if type(module) is nn.Conv3d:
            module.__class__ = ExactConv3d


class MeanPool3d(nn.AvgPool3d):
    """Means over blocks of voxels, whose edges divide the map's: torch's average pooling, in a deterministic form where that is asked for.

    On a GPU the gradient of torch's 3D average pooling has no deterministic form (documentation of
    ``torch.use_deterministic_algorithms``, 2.13).
    """

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, Z, Y, X) to (N, C, Z / z, Y / y, X / x) of blocks (z, y, x)."""
        if x.device.type == "cpu" or not torch.are_deterministic_algorithms_enabled():
            return super().forward(x)
        n, c, *shape = x.shape
        blocks = [edge for size, block in zip(shape, self.kernel_size, strict=True) for edge in (size // block, block)]  # type: ignore[arg-type]
        return x.reshape(n, c, *blocks).mean((3, 5, 7))


def pool_class(dims: int) -> Any:
    """Average pooling of 2 or 3 axes, over blocks that lie side by side."""
    return {2: nn.AvgPool2d, 3: MeanPool3d}[dims]


def max_pool_class(dims: int) -> Any:
    """Maximum pooling of 2 or 3 axes."""
    return {2: nn.MaxPool2d, 3: nn.MaxPool3d}[dims]


def transposed_class(dims: int) -> Any:
    """Transposed convolution of 2 or 3 axes."""
    return {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}[dims]


def activation() -> nn.Module:
    """Leaky ReLU of slope 0.01."""
    return nn.LeakyReLU(0.01, inplace=True)


_FEW_VOXELS = 4096
"""Maps of this size are normalised backward in float32: it costs next to nothing there."""


class ChannelsLastNorm(torch.autograd.Function):
    """Instance normalisation of channels-last maps on a CPU.

    Forward it is torch's group normalisation with one channel a group, which keeps channels-last where torch's instance
    normalisation copies back and forth. Backward that one is the slowest part of a training step; written as two sums and two
    multiply-adds over rows of channels it takes a tenth.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        """Normalise (N, C, ...)."""
        n, c = x.shape[:2]
        y, mean, inverse_std = torch.ops.aten.native_group_norm(x, weight, bias, n, c, x[0, 0].numel(), c, eps)
        ctx.save_for_backward(x, mean, inverse_std, weight)
        return y  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        """Gradients of input, weight and bias."""
        x, mean, inverse_std, weight = ctx.saved_tensors
        mean, inverse_std, weight = mean.float(), inverse_std.float(), weight.float()
        n, c, first = x.shape[:3]
        rows, upstream = (t.movedim(1, -1).reshape(n, first, -1, c) for t in (x, gradients[0]))
        voxels = rows.shape[1] * rows.shape[2]
        if voxels <= _FEW_VOXELS:
            # Differences of nearly equal numbers: where they are few, bfloat16 has too few digits for their sums.
            rows, upstream = rows.float() - mean[:, None, None], upstream.float()
            mean = torch.zeros_like(mean)

        def total(values: Tensor) -> Tensor:
            # Planes in the maps' own type, then the planes in float32: no copy of the whole, no loss that counts.
            return values.sum(2).sum(1, dtype=torch.float32)

        bias_sum = total(upstream)
        weight_sum = (total(upstream * rows) - mean * bias_sum) * inverse_std
        scale = inverse_std * weight
        slope = -scale * inverse_std * weight_sum / voxels
        shift = -scale * bias_sum / voxels - slope * mean
        scale, slope, shift = (t.to(rows.dtype)[:, None, None] for t in (scale, slope, shift))
        down = torch.addcmul(torch.addcmul(shift, upstream, scale), rows, slope).to(x.dtype)
        return down.reshape(n, *x.shape[2:], c).movedim(-1, 1), weight_sum.sum(0), bias_sum.sum(0), None


class InstanceNorm(nn.Module):
    """Instance normalisation with scale and shift, in any number of axes; parameters are named as torch's own.

    On a CPU it is computed by :class:`ChannelsLastNorm`: the same numbers, several times faster (docs/experiments.md).
    """

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, ...) to the same shape."""
        if x.device.type == "cpu":
            y: Tensor = ChannelsLastNorm.apply(x, self.weight, self.bias, self.eps)  # type: ignore[no-untyped-call]
            return y
        return F.instance_norm(x, weight=self.weight, bias=self.bias, eps=self.eps)


def make_norm(kind: Norm, channels: int, dims: int) -> nn.Module:
    """Return a normalisation with scale and shift. Groups are 8 where the channels divide (Wu and He 2018), else as many as do."""
    if kind == "instance":
        return InstanceNorm(channels)
    if kind == "group":
        return nn.GroupNorm(gcd(8, channels), channels)
    return {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}[dims](channels)


def upsampled(x: Tensor, size: tuple[int, ...], *, align_corners: bool = False) -> Tensor:
    """(N, C, ...) brought to a size by linear interpolation."""
    if tuple(x.shape[2:]) == tuple(size):
        return x
    return F.interpolate(x, size=size, mode={2: "bilinear", 3: "trilinear"}[len(size)], align_corners=align_corners)


class ConvNorm(nn.Module):
    """Convolution, normalisation, and leaky ReLU, unless it is switched off."""

    def __init__(
        self,
        c_in: int,
        c_out: int,
        kernel: Stride,
        stride: Stride,
        norm: Norm,
        *,
        bias: bool = True,
        activate: bool = True,
    ) -> None:
        super().__init__()
        dims = len(kernel)
        self.conv = conv_class(dims)(
            c_in, c_out, kernel, stride, padding=tuple((k - 1) // 2 for k in kernel), bias=bias
        )
        self.norm = make_norm(norm, c_out, dims)
        self.nonlin = activation() if activate else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(N, c_in, ...) to (N, c_out, ...)."""
        y: Tensor = self.nonlin(self.norm(self.conv(x)))
        return y


class ConvStack(nn.Module):
    """Several ConvNorm in a row; the first one strides."""

    def __init__(self, c_in: int, c_out: int, kernel: Stride, stride: Stride, n: int, norm: Norm) -> None:
        super().__init__()
        ones = (1,) * len(kernel)
        self.convs = nn.Sequential(
            *(ConvNorm(c_in if i == 0 else c_out, c_out, kernel, stride if i == 0 else ones, norm) for i in range(n))
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, c_in, ...) to (N, c_out, ...)."""
        y: Tensor = self.convs(x)
        return y


class ResidualBlock(nn.Module):
    """Two ConvNorm with a shortcut: average pooling where it strides, 1x1 convolution where channels change.

    Source: He et al. 2016 with the "D" shortcut of He et al. 2019 (arXiv 1812.01187), as in nnU-Net's BasicBlockD.
    """

    def __init__(self, c_in: int, c_out: int, kernel: Stride, stride: Stride, norm: Norm) -> None:
        super().__init__()
        ones = (1,) * len(kernel)
        self.conv1 = ConvNorm(c_in, c_out, kernel, stride, norm)
        self.conv2 = ConvNorm(c_out, c_out, kernel, ones, norm, activate=False)
        self.nonlin2 = activation()
        shortcut: list[nn.Module] = []
        if max(stride) > 1:
            shortcut.append(pool_class(len(kernel))(stride, stride))
        if c_in != c_out:
            shortcut.append(ConvNorm(c_in, c_out, ones, ones, norm, bias=False, activate=False))
        self.skip = nn.Sequential(*shortcut)

    def forward(self, x: Tensor) -> Tensor:
        """(N, c_in, ...) to (N, c_out, ...)."""
        y: Tensor = self.nonlin2(self.conv2(self.conv1(x)) + self.skip(x))
        return y


class ResidualStack(nn.Module):
    """Several ResidualBlock in a row; the first one strides."""

    def __init__(self, c_in: int, c_out: int, kernel: Stride, stride: Stride, n: int, norm: Norm) -> None:
        super().__init__()
        ones = (1,) * len(kernel)
        self.blocks = nn.Sequential(
            *(
                ResidualBlock(c_in if i == 0 else c_out, c_out, kernel, stride if i == 0 else ones, norm)
                for i in range(n)
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, c_in, ...) to (N, c_out, ...)."""
        y: Tensor = self.blocks(x)
        return y


@torch.no_grad()
def initialise(module: nn.Module, *, slope: float = 0.01) -> None:
    """He-normal convolutions for (leaky) ReLU, zero biases, zero last norm of a residual block (nnU-Net's rule)."""
    for layer in module.modules():
        if (
            isinstance(layer, (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d))
            and not layer.weight.is_meta
        ):
            nn.init.kaiming_normal_(layer.weight, a=slope)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    for block in module.modules():
        if isinstance(block, ResidualBlock):
            for p in block.conv2.norm.parameters():
                nn.init.zeros_(p)
