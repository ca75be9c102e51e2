"""The training artefact: what happened."""

from collections.abc import Mapping
from typing import ClassVar

from pydantic import JsonValue

from segpipe.core.artefact import Artefact, Migration, Record


class Extension(Record):
    """Where a finished training was continued, with a fresh decay of the learning rate from there."""

    epochs: int
    iterations: int
    elapsed_s: float

    @property
    def words(self) -> str:
        """For a report."""
        return f"continued after {self.epochs} epochs ({self.iterations} iterations) with a fresh decay of the learning rate"


class TrainingRecord(Artefact):
    """One finished fold."""

    migrations: ClassVar[Mapping[int, Migration]] = {1: dict}
    """Version 1 did not hold the end that was asked for, nor extensions."""
    schema_version: int = 2
    plan_digest: str
    splits_digest: str
    configuration: str
    variant: str
    fold: int | str
    seed: int
    deterministic: bool
    device: str
    begun_with: str | None = None
    """Whose weights the network was given, where it did not begin with fresh ones."""
    guidance: dict[str, JsonValue] | None = None
    """What it learned from beside the labels, where it was distilled."""
    epochs: int
    iterations: int
    elapsed_s: float
    """Time spent in training, over all resumptions."""
    scheduled_epochs: int | None = None
    """Epochs that were asked for or the recipe's; None where minutes ended it, or it is not known."""
    scheduled_minutes: float | None = None
    """Minutes that were asked for."""
    extensions: tuple[Extension, ...] = ()
    """Where it was continued after it had been finished."""
    data_wait_share: float
    train_loss: float
    validation_dice: dict[str, float | None]
    """Per label, on validation patches of the last epoch; None where no patch held the label."""
    mean_validation_dice: float | None
    stopped_early: bool = False
    best_epoch: int | None = None
    """Whose weights were kept, where training could stop early."""
    mirror_axes: tuple[int, ...]
    weights_sha256: str
    versions: dict[str, str]
