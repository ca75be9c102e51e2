"""What a network may learn from beside the labels, as the loop sees it; distillation fills it in."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from segpipe.core.labels import Labels
from segpipe.execution.device import Runtime
from segpipe.networks.segmenter import Segmenter
from segpipe.planning.recipe import TrainingSettings


@dataclass(frozen=True)
class TrainingContext:
    """What a guide may know of the training that it adds to."""

    network: Segmenter
    """The network that is trained."""
    labels: Labels
    runtime: Runtime
    settings: TrainingSettings
    scaler: torch.amp.GradScaler
    n_channels: int
    """Channels of an image."""
    n_inputs: int
    """Channels that the network is given: those of the image, and of a cascade's first stage one for each label."""
    loss_floor: float | None
    """Lowest value of the loss against the labels; None where it is not known."""
    task_loss: Callable[[list[Tensor], Tensor, tuple[bool, ...]], Tensor]
    """Loss against the labels of the logits of every head; the last argument says which samples have labels."""
    note: Callable[[str], None]
    """Reports a sentence to the user."""


@dataclass(frozen=True)
class StepContext:
    """What a guide is shown of a step: one part of a batch, as the network saw it."""

    images: Tensor
    """(N, C, ...), augmented."""
    labels: Tensor
    """(N, ...) label indices, augmented alike."""
    inside: Tensor
    """(N, ...) voxels that count: those of the image, and inside the mask that it is normalised in, where there is one."""
    soft: Tensor | None
    """(N, K, ...) probabilities from disk, moved alike; None where none are kept."""
    heads: list[Tensor]
    """Logits of the network that is trained, full resolution first."""
    task: Tensor
    """Loss against the labels, detached; of the part's share."""
    share: float
    """Share of the part in the whole batch."""
    iteration: int
    progress: float
    """Share of the training that is done."""
    labelled: tuple[bool, ...]
    """Whether each sample's labels are somebody's."""


class Guide(Protocol):
    """Adds to the loss of every step, and may have weights of its own."""

    taps: bool
    """Whether it looks at feature maps of the network, which then cannot be compiled."""

    def loss(self, seen: StepContext) -> Tensor:
        """Return what is added to the loss of a part, its share included."""
        ...

    def step(self, learning_rate: float) -> None:
        """Take a step with its own weights, after the network's; their gradients are scaled as the network's were."""
        ...

    def summary(self) -> dict[str, Any]:
        """Return what is worth a line of the log since the last call."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return all that is needed to go on after an interruption."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        ...


class Guidance(Protocol):
    """How a guide is made, where training runs. Picklable."""

    @property
    def digest(self) -> str:
        """sha256 of all that it teaches: a checkpoint is continued under the same guidance only."""
        ...

    @property
    def soft_labels(self) -> Path | None:
        """Folder of probabilities that are read with the patches; None for none."""
        ...

    @property
    def unlabelled(self) -> tuple[Path, tuple[str, ...]] | None:
        """Folder of prepared cases without labels, and which; they are trained on beside the others."""
        ...

    def describe(self) -> dict[str, Any]:
        """Return what the training's record says of it."""
        ...

    def guide(self, context: TrainingContext) -> Guide:
        """Make the guide of a training."""
        ...
