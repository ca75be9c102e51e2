"""What every network here is: images in, logits of one or several heads out."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Segmenter(nn.Module):
    """A network as the trainer and the predictor see it.

    A subclass implements :meth:`logits`. Images of any size are taken: edges are padded to what the network divides, and its
    logits cut back.
    """

    def __init__(self, dims: int, divisors: tuple[int, ...]) -> None:
        super().__init__()
        self.dims, self.divisors = dims, divisors

    def logits(self, x: Tensor, *, every: bool) -> list[Tensor]:
        """Logits of the heads, that of full resolution first; without ``every`` that one is enough.

        Parameters
        ----------
        x : Tensor
            (N, C, ...) whose edges are multiples of ``divisors``.
        every : bool
            All heads that enter the loss.
        """
        raise NotImplementedError

    def head_weights(self, n: int) -> list[float]:
        """Weights of the heads in the loss, summing to 1: halved from resolution to resolution, as in nnU-Net.

        nnU-Net gives its lowest resolution weight 0; the U-Nets here leave that one out, so the weights are the same.
        """
        weights = [0.5**i for i in range(n)]
        return [w / sum(weights) for w in weights]

    def forward(self, x: Tensor) -> Tensor:
        """Logits at full resolution: (N, C, ...) to (N, K, ...)."""
        return self._on_any_size(x, every=False)[0]

    def supervised(self, x: Tensor) -> list[Tensor]:
        """Logits of every head that enters the loss, that of full resolution first."""
        return self._on_any_size(x, every=True)

    def _on_any_size(self, x: Tensor, *, every: bool) -> list[Tensor]:
        shape = x.shape[2:]
        missing = [-n % d for n, d in zip(shape, self.divisors, strict=True)]
        if not any(missing):
            return self.logits(x, every=every)
        padded = F.pad(x, [side for n in reversed(missing) for side in (0, n)])
        return [_cut(head, shape, padded.shape[2:]) for head in self.logits(padded, every=every)]

    @torch.no_grad()
    def fit_pretrained(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return weights from elsewhere under this network's names and for its input channels; here as they are."""
        return weights


def _cut(head: Tensor, shape: torch.Size, padded: torch.Size) -> Tensor:
    """The part of a head's logits that lies over the image."""
    for axis, (n, p) in enumerate(zip(shape, padded, strict=True)):
        size = head.shape[2 + axis]
        head = head.narrow(2 + axis, 0, -(-n * size // p))
    return head


def colour_to_channels(weight: Tensor, n_channels: int) -> Tensor:
    """First convolution of a network of colour images (O, 3, ...) for another number of channels.

    Each gets the mean over the colours, scaled so that the answer to images of equal channels stays: what a grey picture shown in
    three colours would give.
    """
    mean = weight.sum(1, keepdim=True) / n_channels
    return mean.expand(-1, n_channels, *weight.shape[2:]).contiguous()
