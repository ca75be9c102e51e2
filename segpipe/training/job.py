"""What is to be trained, and who gets progress."""

from collections.abc import Callable
from dataclasses import dataclass

from segpipe.core.workspace import FoldFolder, Workspace
from segpipe.dataset.splits import Splits
from segpipe.planning.schema import Plan
from segpipe.training.guide import Guidance
from segpipe.training.initial import InitialWeights
from segpipe.training.progress import Status


@dataclass(frozen=True)
class FoldJob:
    """One fold to train: what it is and how it is to be done. Picklable, so that several processes can share it."""

    workspace: Workspace
    plan: Plan
    splits: Splits
    prepared: tuple[str, ...]
    """Cases whose arrays are there."""
    configuration: str
    fold: int | str = 0
    """Fold to hold out; "all" trains on every case."""
    epochs: int | None = None
    minutes: float | None = None
    """End of training instead of the recipe's."""
    seed: int = 0
    deterministic: bool = False
    resume: bool = False
    """Continue an interrupted fold, or keep a finished one."""
    extend: bool = False
    """Continue a finished fold to a later end, with a fresh decay of the learning rate."""
    initial: InitialWeights | None = None
    """Weights to begin with."""
    n_devices: int = 1
    guidance: Guidance | None = None
    """What is learned from beside the labels."""

    @property
    def folder(self) -> FoldFolder:
        """Where the fold is kept."""
        return self.workspace.fold(self.configuration, self.plan.recipe, self.fold)

    @property
    def identity(self) -> dict[str, str]:
        """What a checkpoint must have been trained with to be continued."""
        known = {"plan": self.plan.digest(), "splits": self.splits.digest(), "seed": str(self.seed)}
        return known if self.guidance is None else known | {"guidance": self.guidance.digest}


@dataclass(frozen=True)
class Listener:
    """Receives what happens."""

    on_iteration: Callable[[Status], None] = lambda _: None
    on_epoch: Callable[[], None] = lambda: None
    note: Callable[[str], None] = lambda _: None
