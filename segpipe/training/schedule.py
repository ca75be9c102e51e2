"""How long training lasts and how the learning rate falls. Pure."""

from dataclasses import dataclass
from math import ceil

from segpipe.planning.recipe import TrainingSettings

POLY_EXPONENT = 0.9


@dataclass(frozen=True)
class Schedule:
    """An end in epochs or in minutes, whichever was asked for."""

    epochs: int
    iterations_per_epoch: int
    minutes: float | None = None

    def progress(self, iteration: int, elapsed_s: float) -> float:
        """Return the share of training that is done, 0 to 1."""
        done = (
            iteration / (self.epochs * self.iterations_per_epoch)
            if self.minutes is None
            else elapsed_s / (60 * self.minutes)
        )
        return min(done, 1.0)


def make_schedule(
    settings: TrainingSettings, n_cases: int, batch_size: int, *, epochs: int | None, minutes: float | None
) -> Schedule:
    """Return the schedule of a recipe, with the user's own end where one is given."""
    per_epoch = settings.iterations_per_epoch
    if settings.patches_per_case is not None:
        per_epoch = min(per_epoch, ceil(settings.patches_per_case * n_cases / batch_size))
    return Schedule(epochs or settings.epochs, per_epoch, minutes)


def poly_learning_rate(initial: float, progress: float) -> float:
    """Polynomial decay: ``initial * (1 - progress) ** 0.9``."""
    return float(initial * (1 - progress) ** POLY_EXPONENT)
