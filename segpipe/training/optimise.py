"""The optimiser of a recipe, and the running average of weights."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from segpipe.planning.recipe import TrainingSettings


def make_optimizer(network: torch.nn.Module, settings: TrainingSettings) -> torch.optim.Optimizer:
    """Return the recipe's optimiser over the weights that are trained."""
    weights = [p for p in network.parameters() if p.requires_grad]
    fused = all(p.device.type == "cuda" for p in weights)
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(
            weights, lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=fused or None
        )
    optimizer = torch.optim.SGD(
        weights,
        lr=settings.learning_rate,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        nesterov=settings.momentum > 0,
        fused=fused or None,
    )
    if settings.momentum:
        _begin_momentum(optimizer)
        optimizer.register_load_state_dict_post_hook(_begin_momentum)
    return optimizer


def _begin_momentum(optimizer: torch.optim.Optimizer) -> None:
    """Begin with a momentum of zero where there is none yet; the first step is the same number.

    torch's fused SGD makes the momentum of unwritten memory at the first step. Where the gradient scaler skips that step (float16 often
    overflows at first), the memory stays unwritten, and counts as momentum from then on.
    """
    for group in optimizer.param_groups:
        for weight in group["params"]:
            if optimizer.state[weight].get("momentum_buffer") is None:
                optimizer.state[weight]["momentum_buffer"] = torch.zeros_like(weight)


class WeightAverage:
    """Exponential moving average of a network's weights, and of what its batch normalisation has seen.

    Source: Tarvainen and Valpola 2017 (arXiv 1703.01780).
    """

    def __init__(self, network: torch.nn.Module, decay: float) -> None:
        statistics = {name: b for name, b in network.named_buffers() if b.is_floating_point()}
        self.weights: dict[str, Tensor] = dict(network.named_parameters()) | statistics
        self.average = {name: p.detach().clone() for name, p in self.weights.items()}
        self.decay = decay

    @torch.no_grad()
    def update(self, iteration: int) -> None:
        """Take in the weights after an iteration; the first ones fade fast, because they are far off."""
        keep = min(self.decay, (1 + iteration) / (10 + iteration))
        torch._foreach_lerp_(list(self.average.values()), [p.detach() for p in self.weights.values()], 1 - keep)

    def load(self, average: dict[str, Tensor]) -> None:
        """Continue from saved averages."""
        for name, value in average.items():
            self.average[name].copy_(value)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Let the network compute with the average while the context lasts."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, p in self.weights.items():
            held = p.detach().clone()
            p.copy_(self.average[name])
            self.average[name].copy_(held)
