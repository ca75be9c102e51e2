"""The critic of holistic distillation: how well probabilities fit their image, of teacher or of student.

Source: structured knowledge distillation, Liu et al. 2019 (arXiv 1903.04197): a conditional Wasserstein critic with self-attention.
What the paper leaves open is decided as in Gulrajani et al. 2017 (arXiv 1704.00028): the gradient penalty alone holds the critic's slope,
so it has neither batch normalisation, which would couple samples, nor spectral normalisation.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from segpipe.distillation.features import pooled
from segpipe.execution.device import sent
from segpipe.networks.blocks import conv_class

LONGEST = 64
"""Edge that images and probabilities are pooled to before they are judged: what is judged is layout, and twice-differentiated 3D
convolutions are hungry."""
MOST_POSITIONS = 1024
"""Attention compares each two positions; it is left out where a map has more."""
_DEPTH = 4


class SelfAttention(nn.Module):
    """Every position looks at every other (Zhang et al. 2019, arXiv 1805.08318); at first it adds nothing."""

    def __init__(self, channels: int, dims: int) -> None:
        super().__init__()
        conv = conv_class(dims)
        inner = max(channels // 8, 1)
        self.query, self.key, self.value = (
            conv(channels, inner, 1),
            conv(channels, inner, 1),
            conv(channels, channels, 1),
        )
        self.strength = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, ...) to the same shape."""
        query, key, value = (layer(x).flatten(2) for layer in (self.query, self.key, self.value))
        weights = (query.transpose(1, 2) @ key).softmax(-1)
        seen: Tensor = value @ weights.transpose(1, 2)
        return x + self.strength * seen.reshape(x.shape)


class Critic(nn.Module):
    """One score for an image with probabilities: higher for what the teacher would say."""

    def __init__(self, n_channels: int, shape: tuple[int, ...], *, width: int = 32) -> None:
        """Lay it out for patches.

        Parameters
        ----------
        n_channels : int
            Channels of the image and of the probabilities together.
        shape : tuple of int
            Size of a patch, in voxels.
        width : int
            Feature maps of the first layer; each further one has twice as many.
        """
        super().__init__()
        conv, edges, c_in = conv_class(len(shape)), list(self.grid_of(shape)), n_channels
        layers: list[nn.Module] = []
        for depth in range(_DEPTH):
            c_out = width * 2**depth
            # An axis is halved while something is left of it.
            halved = [n >= 4 for n in edges]
            kernel = [4 if h else 3 for h in halved]
            layers += [conv(c_in, c_out, kernel, [2 if h else 1 for h in halved], 1), nn.LeakyReLU(0.1)]
            edges = [n // 2 if h else n for n, h in zip(edges, halved, strict=True)]
            positions = 1
            for n in edges:
                positions *= n
            if depth >= _DEPTH - 2 and positions <= MOST_POSITIONS:
                layers.append(SelfAttention(c_out, len(shape)))
            c_in = c_out
        self.layers = nn.Sequential(*layers)
        self.score = nn.Linear(c_in, 1)

    @staticmethod
    def grid_of(shape: tuple[int, ...]) -> tuple[int, ...]:
        """Grid that patches of a shape are judged on."""
        return tuple(min(n, LONGEST) for n in shape)

    @classmethod
    def shown(cls, images: Tensor, probabilities: Tensor) -> Tensor:
        """What the critic looks at: (N, C + K, ...) of images (N, C, ...) and probabilities (N, K, ...)."""
        grid = cls.grid_of(tuple(images.shape[2:]))
        return torch.cat((pooled(images.float(), grid), pooled(probabilities.float(), grid)), dim=1)

    def forward(self, shown: Tensor) -> Tensor:
        """Scores (N,)."""
        scores: Tensor = self.score(self.layers(shown).flatten(2).mean(2))
        return scores[:, 0]


def holistic_loss(critic: Critic, images: Tensor, student: Tensor, teacher: Tensor) -> Tensor:
    """How much better the critic finds the teacher's probabilities than the student's; 0 where both say the same.

    Parameters
    ----------
    critic : Critic
    images : Tensor
        (N, C, ...).
    student, teacher : Tensor
        Probabilities (N, K, ...).
    """
    better, worse = critic(Critic.shown(images, teacher)), critic(Critic.shown(images, student))
    value: Tensor = (better - worse).mean()
    return value


def critic_loss(
    critic: Critic, images: Tensor, student: Tensor, teacher: Tensor, *, penalty: float, generator: torch.Generator
) -> Tensor:
    """What the critic learns from: to score teachers higher, with slopes of 1 between the two (gradient penalty).

    Parameters
    ----------
    critic : Critic
    images : Tensor
        (N, C, ...).
    student, teacher : Tensor
        Probabilities (N, K, ...), without gradients.
    penalty : float
        Weight of the squared distance of the slopes from 1.
    generator : torch.Generator
        Draws the points between the two at which slopes are taken; on the CPU.
    """
    real, made = Critic.shown(images, teacher), Critic.shown(images, student)
    n_channels = images.shape[1]
    share = sent(torch.rand((len(real), *(1,) * (real.ndim - 1)), generator=generator), real.device, real.dtype)
    between = (share * real + (1 - share) * made)[:, n_channels:].requires_grad_()
    scores = critic(torch.cat((real[:, :n_channels], between), dim=1))
    (slopes,) = torch.autograd.grad(scores.sum(), between, create_graph=True)
    steep = slopes.flatten(1).norm(dim=1)
    value: Tensor = critic(made).mean() - critic(real).mean() + penalty * F.mse_loss(steep, torch.ones_like(steep))
    return value
