"""How a user wants a fold trained. No torch."""

from dataclasses import dataclass

from segpipe.core.workspace import PathLike
from segpipe.errors import SegpipeError


@dataclass(frozen=True)
class FoldSettings:
    """How a user wants a fold trained."""

    fold: int | str = 0
    epochs: int | None = None
    minutes: float | None = None
    seed: int = 0
    deterministic: bool = False
    resume: bool = False
    devices: int = 1
    init_from: PathLike | None = None
    tensorboard: bool = False

    def __post_init__(self) -> None:
        if self.epochs is not None and self.minutes is not None:
            raise SegpipeError(
                f"--epochs {self.epochs} and --minutes {self.minutes:g} are two ends of training; give one of them"
            )
