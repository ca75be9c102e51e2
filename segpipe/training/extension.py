"""A finished fold that is trained further, and ends that are asked for and cannot be followed. Pure, no torch."""

from segpipe.errors import UsageError
from segpipe.training.schema import TrainingRecord

_ALIKE = 0.1
"""Minutes that older records do not hold are compared with the time that the training took, within this share."""


def require_followed(
    record: TrainingRecord, *, epochs: int | None, minutes: float | None, instead: str = "use --extend"
) -> None:
    """Raise if a finished fold is to be continued, and another end is asked for than the one that it came to.

    Parameters
    ----------
    record : TrainingRecord
        Record of the finished fold.
    epochs, minutes : number, optional
        End that is asked for; none means the fold's own.
    instead : str
        What the user does to train it further.

    Raises
    ------
    UsageError
        Naming both ends.
    """
    if epochs is not None and not _ended_after(record, epochs):
        asked = f"--epochs {epochs}"
    elif minutes is not None and not _ended_within(record, minutes):
        asked = f"--minutes {minutes:g}"
    else:
        return
    raise UsageError(
        f"fold {record.fold} is finished with {_length(record)}; {asked} was not followed; {instead}, or leave it out to keep the fold "
        "as it is"
    )


def require_longer(record: TrainingRecord, *, epochs: int | None, minutes: float | None) -> None:
    """Raise unless a finished fold would be trained further by the end that is asked for.

    Raises
    ------
    UsageError
        If no end is given, or the fold has come as far already.
    """
    require_end(epochs, minutes)
    # An extension that was interrupted has the old record still: the same command continues it.
    if epochs is not None and epochs <= (record.scheduled_epochs or record.epochs):
        raise UsageError(
            f"--extend --epochs {epochs}: fold {record.fold} has {_length(record)} already; give more epochs"
        )
    if minutes is not None and 60 * minutes <= record.elapsed_s:
        raise UsageError(
            f"--extend --minutes {minutes:g}: fold {record.fold} has {_length(record)} already; give more minutes, those before included"
        )


def require_end(epochs: int | None, minutes: float | None) -> None:
    """Raise unless a new end is given."""
    if epochs is None and minutes is None:
        raise UsageError("--extend: give the new end with --epochs or --minutes, those before included")


def _ended_after(record: TrainingRecord, epochs: int) -> bool:
    if record.stopped_early:
        return epochs >= record.epochs
    if record.scheduled_minutes is not None:
        return False
    return epochs == (record.scheduled_epochs or record.epochs)


def _ended_within(record: TrainingRecord, minutes: float) -> bool:
    if record.scheduled_minutes is not None:
        return minutes == record.scheduled_minutes
    if record.stopped_early:
        return 60 * minutes >= record.elapsed_s
    if record.scheduled_epochs is not None:
        return False
    return abs(60 * minutes - record.elapsed_s) <= _ALIKE * max(60 * minutes, record.elapsed_s)


def _length(record: TrainingRecord) -> str:
    if record.scheduled_minutes is not None:
        return f"{record.scheduled_minutes:g} minutes ({record.epochs} epochs)"
    return f"{record.epochs} epochs"
