"""How a user wants a fold trained. No torch."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self


@dataclass(frozen=True)
class FoldSettings:
    """How a user wants a fold trained."""

    fold: int | str = 0
    epochs: int | None = None
    minutes: float | None = None
    seed: int = 0
    deterministic: bool = False
    resume: bool = False
    extend: bool = False
    devices: int = 1
    init_from: Path | None = None
    tensorboard: bool = False

    @classmethod
    def of(cls, options: Any) -> Self:
        """Take over what a command's options say of it."""
        return cls(**{f.name: getattr(options, f.name) for f in fields(cls) if hasattr(options, f.name)})
