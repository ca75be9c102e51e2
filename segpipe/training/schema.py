"""The training artefact: what happened."""

from pydantic import JsonValue

from segpipe.core.artefact import Artefact


class TrainingRecord(Artefact):
    """One finished fold."""

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
