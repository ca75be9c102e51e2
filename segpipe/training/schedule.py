"""How long training lasts and how the learning rate runs. Pure."""

from dataclasses import dataclass
from math import ceil, cos, pi

from segpipe.planning.recipe import TrainingSettings

POLY_EXPONENT = 0.9


@dataclass(frozen=True)
class Schedule:
    """An end in epochs or in minutes, whichever was asked for."""

    epochs: int
    iterations_per_epoch: int
    minutes: float | None = None
    from_iteration: int = 0
    from_s: float = 0.0
    """Where the learning rate begins to fall: the beginning, or that of the last extension."""

    def progress(self, iteration: int, elapsed_s: float) -> float:
        """Return the share that is done, 0 to 1: of the training, or of its last extension."""
        begun, now, end = (
            (self.from_iteration, iteration, self.epochs * self.iterations_per_epoch)
            if self.minutes is None
            else (self.from_s, elapsed_s, 60 * self.minutes)
        )
        return min((now - begun) / (end - begun), 1.0) if end > begun else 1.0

    def remaining_s(self, iteration: int, elapsed_s: float, step_s: float) -> float:
        """Forecast of the time that is left when an iteration takes ``step_s``."""
        if self.minutes is not None:
            return 60 * self.minutes - elapsed_s
        return (self.epochs * self.iterations_per_epoch - iteration) * step_s


def make_schedule(
    settings: TrainingSettings, n_cases: int, batch_size: int, *, epochs: int | None, minutes: float | None
) -> Schedule:
    """Return the schedule of a recipe, with the user's own end where one is given."""
    per_epoch = settings.iterations_per_epoch
    if settings.patches_per_case is not None:
        per_epoch = min(per_epoch, ceil(settings.patches_per_case * n_cases / batch_size))
    return Schedule(epochs or settings.epochs, per_epoch, minutes)


def learning_rate(settings: TrainingSettings, iteration: int, progress: float) -> float:
    """Learning rate of an iteration: linear warm-up over iterations, times the decay over the whole training."""
    rising = min((iteration + 1) / settings.warmup_iterations, 1.0) if settings.warmup_iterations else 1.0
    decay = poly_decay(progress) if settings.schedule == "poly" else cosine_decay(progress)
    return settings.learning_rate * rising * decay


def poly_decay(progress: float) -> float:
    """Polynomial decay: ``(1 - progress) ** 0.9`` (nnU-Net's)."""
    return float((1 - progress) ** POLY_EXPONENT)


def cosine_decay(progress: float) -> float:
    """Half a cosine from 1 to 0 (Loshchilov and Hutter 2017, arXiv 1608.03983)."""
    return (1 + cos(pi * progress)) / 2
