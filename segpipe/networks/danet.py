"""DANet: dual attention over a dilated ResNet, in 2D and 3D.

Source: Fu et al., CVPR 2019 (arXiv 1809.02983); the backbone is He et al. 2016 with the dilations of the authors' best model. What
differs: the poolings are those of the plan (all three in the original, output stride 8), and the position attention is computed by a
kernel that never holds the matrix of all pairs of positions.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from segpipe.networks.blocks import Stride, conv_class, initialise, make_norm, max_pool_class, upsampled
from segpipe.networks.segmenter import Segmenter, colour_to_channels
from segpipe.networks.spec import NetworkSpec, Norm

DEPTH = 3
"""Poolings of the backbone: its first convolution, the maximum pooling after it, and its second stage."""
_BLOCKS = {"resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3)}
_DILATIONS = ((1,), (1,), (1, 2), (4, 8, 16))
"""Dilations of each stage's blocks, the last one repeated: the third and fourth stage dilate instead of pooling (multi-grid)."""
_THIRD = 2
_EXPANSION = 4


class PositionAttention(nn.Module):
    """Each position takes in the others, by the likeness of their features: ``gamma * V softmax(Q'K)' + x``."""

    def __init__(self, channels: int, dims: int) -> None:
        super().__init__()
        conv, inner = conv_class(dims), max(channels // 8, 1)
        self.query_conv = conv(channels, inner, 1)
        self.key_conv = conv(channels, inner, 1)
        self.value_conv = conv(channels, channels, 1)
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, ...) to the same shape."""
        n, c = x.shape[:2]
        # Kernels that hold no matrix of pairs want a position's features side by side, and fall back to one that does otherwise.
        query, key, value = (
            m(x).flatten(2).transpose(1, 2).contiguous() for m in (self.query_conv, self.key_conv, self.value_conv)
        )
        # Features in eights, which kernels on a GPU ask for; zeros add nothing to a product.
        inner = -(-query.shape[-1] // 8) * 8
        query, key = (F.pad(t, (0, inner - t.shape[-1])) for t in (query, key))
        # Attention kernels that hold no matrix of pairs want values as narrow as keys: the value is cut into heads that share
        # one query and key, which changes nothing, because softmax(Q'K) multiplies each column of V by itself.
        heads = -(-c // inner)
        value = F.pad(value, (0, heads * inner - c)).reshape(n, -1, heads, inner).transpose(1, 2)
        query, key = (t[:, None].expand(-1, heads, -1, -1) for t in (query, key))
        taken = F.scaled_dot_product_attention(query, key, value, scale=1.0)
        taken = taken.transpose(1, 2).flatten(2)[..., :c].transpose(1, 2).reshape(n, c, *x.shape[2:])
        return self.gamma * taken + x


class ChannelAttention(nn.Module):
    """Each channel takes in the others, by how unlike they are: ``gamma * softmax(rowmax(E) - E) x + x`` with ``E = X X'``."""

    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, ...) to the same shape."""
        rows = x.flatten(2)
        # Sums over all positions, of which only differences count: not in bfloat16.
        with torch.autocast(x.device.type, enabled=False):
            exact = rows.float()
            energy = exact @ exact.transpose(1, 2)
            attention = (energy.amax(-1, keepdim=True) - energy).softmax(-1)
            taken = (attention @ exact).to(x.dtype)
        return self.gamma * taken.reshape(x.shape) + x


class Bottleneck(nn.Module):
    """Convolutions of kernel 1, 3, 1 with a shortcut; names as in torchvision, so that its weights load."""

    def __init__(self, c_in: int, planes: int, stride: Stride, dilation: int, norm: Norm) -> None:
        super().__init__()
        dims, c_out = len(stride), _EXPANSION * planes
        conv = conv_class(dims)
        self.conv1, self.bn1 = conv(c_in, planes, 1, bias=False), make_norm(norm, planes, dims)
        self.conv2 = conv(planes, planes, 3, stride, padding=dilation, dilation=dilation, bias=False)
        self.bn2 = make_norm(norm, planes, dims)
        self.conv3, self.bn3 = conv(planes, c_out, 1, bias=False), make_norm(norm, c_out, dims)
        self.downsample: nn.Module = nn.Identity()
        if c_in != c_out or max(stride) > 1:
            self.downsample = nn.Sequential(conv(c_in, c_out, 1, stride, bias=False), make_norm(norm, c_out, dims))

    def forward(self, x: Tensor) -> Tensor:
        """(N, c_in, ...) to (N, 4 * planes, ...)."""
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = F.relu(self.bn2(self.conv2(y)), inplace=True)
        return F.relu(self.bn3(self.conv3(y)) + self.downsample(x), inplace=True)


class DANet(Segmenter):
    """A dilated ResNet and two attention branches; their sum and each branch have a head of their own."""

    def __init__(self, c_in: int, c_out: int, spec: NetworkSpec) -> None:
        super().__init__(spec.dims, spec.divisors)
        dims, norm, conv = spec.dims, spec.norm, conv_class(spec.dims)
        width = float(spec.options.get("width", 1.0))  # type: ignore[arg-type]
        first, second, third = spec.strides[1:]
        planes = [max(round(width * 64 * 2**i), 1) for i in range(4)]
        self.conv1 = conv(c_in, planes[0], 7, first, padding=3, bias=False)
        self.bn1 = make_norm(norm, planes[0], dims)
        self.maxpool = max_pool_class(dims)(3, second, padding=1)
        before, ones = planes[0], (1,) * dims
        for stage, n in enumerate(_BLOCKS[str(spec.options.get("backbone", "resnet50"))]):
            dilations = [*_DILATIONS[stage], *_DILATIONS[stage][-1:] * n][:n]
            if stage == _THIRD:
                dilations[0] = int(spec.options.get("third_stage", 2))  # type: ignore[arg-type]
            blocks: list[nn.Module] = []
            for number, dilation in enumerate(dilations):
                stride = third if stage == 1 and number == 0 else ones
                blocks.append(Bottleneck(before, planes[stage], stride, dilation, norm))
                before = _EXPANSION * planes[stage]
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
        inner = max(before // 4, 1)

        def branch(c: int) -> nn.Sequential:
            return nn.Sequential(conv(c, inner, 3, padding=1, bias=False), make_norm(norm, inner, dims), nn.ReLU(True))

        def head() -> nn.Sequential:
            dropout: Any = {2: nn.Dropout2d, 3: nn.Dropout3d}[dims]
            return nn.Sequential(dropout(0.1), conv(inner, c_out, 1))

        self.conv5a, self.conv5c = branch(before), branch(before)
        self.position, self.channel = PositionAttention(inner, dims), ChannelAttention()
        self.conv51, self.conv52 = branch(inner), branch(inner)
        self.conv6, self.conv7, self.conv8 = head(), head(), head()
        initialise(self, slope=0.0)

    def logits(self, x: Tensor, *, every: bool) -> list[Tensor]:
        """See :meth:`Segmenter.logits`; of the sum of both branches, then of position and of channel attention."""
        shape = tuple(x.shape[2:])
        x = self.maxpool(F.relu(self.bn1(self.conv1(x)), inplace=True))
        for stage in range(len(_DILATIONS)):
            x = self.get_submodule(f"layer{stage + 1}")(x)
        position = self.conv51(self.position(self.conv5a(x)))
        channel = self.conv52(self.channel(self.conv5c(x)))
        heads = [self.conv8(position + channel)]
        if every:
            heads += [self.conv6(position), self.conv7(channel)]
        return [upsampled(head, shape, align_corners=True) for head in heads]

    def head_weights(self, n: int) -> list[float]:
        """All alike, as in the paper, which sums them; here they sum to 1."""
        return [1 / n] * n

    def fit_pretrained(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Fit a ResNet's weights: its first convolution sees colours."""
        fitted = dict(weights)
        stem, own = weights.get("conv1.weight"), self.conv1.weight
        if stem is not None and stem.ndim == own.ndim and stem.shape[1] == 3 != own.shape[1]:
            fitted["conv1.weight"] = colour_to_channels(stem, own.shape[1])
        return fitted


def build(spec: NetworkSpec, n_channels: int, n_outputs: int) -> DANet:
    """Build the planned DANet."""
    return DANet(n_channels, n_outputs, spec)
