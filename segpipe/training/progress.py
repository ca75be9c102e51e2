"""Where training stands."""

from dataclasses import dataclass, field
from typing import Any

DICE_MEMORY = 0.9
"""Share of the earlier average in the running average of validation Dice (nnU-Net's)."""


@dataclass(frozen=True)
class Status:
    """What a progress display shows after an iteration."""

    progress: float
    elapsed_s: float
    epoch: int
    """Epochs before that of the iteration."""
    loss: float
    dice: tuple[tuple[str, float | None], ...]
    """Per label, on the validation patches of the last epoch."""

    @property
    def remaining_s(self) -> float | None:
        """Forecast of the time that is left."""
        return self.elapsed_s / self.progress * (1 - self.progress) if self.progress > 0 else None

    @property
    def mean_dice(self) -> float | None:
        """Mean over the labels that were seen."""
        return mean_dice([d for _, d in self.dice])


@dataclass
class Progress:
    """Where training stands. Random streams are functions of the iteration, so the sampler has nothing else to keep."""

    iteration: int = 0
    epoch: int = 0
    elapsed_s: float = 0.0
    waited_s: float = 0.0
    train_loss: float = float("nan")
    epoch_losses: list[float] = field(default_factory=list)
    """Losses of the unfinished epoch."""
    validation_dice: list[float | None] = field(default_factory=list)
    average_dice: float | None = None
    """Running average over epochs of the mean validation Dice."""
    best_dice: float | None = None
    best_epoch: int = 0
    stopped_early: bool = False
    epochs: int = 0
    minutes: float | None = None
    """End of the training, which a resumed one keeps unless it is given another."""
    extensions: list[tuple[int, int, float]] = field(default_factory=list)
    """Epoch, iteration and seconds at which the finished training was continued."""
    begun_with: str | None = None
    """Whose weights the network was given before the first iteration."""

    @property
    def is_best(self) -> bool:
        """Whether the epoch that just ended has the best average so far."""
        return self.epoch > 0 and self.best_epoch == self.epoch

    def holds(self, line: dict[str, Any]) -> bool:
        """Whether the epoch of a line of the log is part of this progress."""
        return bool(line["epoch"] <= self.epoch and line["iteration"] <= self.iteration)

    def end_epoch(self, patience: int | None) -> None:
        """Take stock of the epoch whose losses and validation are in."""
        self.epoch += 1
        self.train_loss = sum(self.epoch_losses) / len(self.epoch_losses)
        self.epoch_losses = []
        dice = mean_dice(self.validation_dice)
        if dice is not None:
            before = dice if self.average_dice is None else self.average_dice
            self.average_dice = DICE_MEMORY * before + (1 - DICE_MEMORY) * dice
            if self.best_dice is None or self.average_dice > self.best_dice:
                self.best_dice, self.best_epoch = self.average_dice, self.epoch
        # An extension has the whole patience.
        since = max([self.best_epoch, *(epoch for epoch, *_ in self.extensions)])
        self.stopped_early = patience is not None and self.epoch - since >= patience

    def extend(self, epochs: int, minutes: float | None) -> None:
        """Continue a finished training to another end; an extension to the same end that was interrupted goes on."""
        if not self.extensions or (self.epochs, self.minutes) != (epochs, minutes):
            self.extensions.append((self.epoch, self.iteration, self.elapsed_s))
        self.stopped_early = False


def mean_dice(scores: list[float | None]) -> float | None:
    """Mean over the classes that were seen; None when none was."""
    seen = [s for s in scores if s is not None]
    return sum(seen) / len(seen) if seen else None
