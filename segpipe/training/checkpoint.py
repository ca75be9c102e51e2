"""The state from which training continues. Written atomically, loaded without executing anything."""

import io
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from segpipe.artefact import write_atomically
from segpipe.errors import TrainingError


@dataclass
class Progress:
    """Where training stands. Random streams are functions of the iteration, so this is all there is to keep."""

    iteration: int = 0
    epoch: int = 0
    elapsed_s: float = 0.0
    waited_s: float = 0.0
    train_loss: float = float("nan")
    epoch_losses: list[float] = field(default_factory=list)
    """Losses of the unfinished epoch."""
    validation_dice: list[float | None] = field(default_factory=list)


def save_checkpoint(
    path: Path, network: torch.nn.Module, optimizer: torch.optim.Optimizer, progress: Progress, identity: dict[str, str]
) -> None:
    """Write the state; a reader sees the old one or the new one."""
    buffer = io.BytesIO()
    torch.save(
        {
            "network": network.state_dict(),
            "optimizer": optimizer.state_dict(),
            "progress": asdict(progress),
            "identity": identity,
        },
        buffer,
    )
    write_atomically(path, buffer.getvalue())


def load_checkpoint(
    path: Path, network: torch.nn.Module, optimizer: torch.optim.Optimizer, identity: dict[str, str]
) -> Progress:
    """Restore the state of an interrupted training.

    Raises
    ------
    TrainingError
        If the file is damaged or belongs to another plan, split or seed.
    """
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds here; each means the same to the user
        raise TrainingError(f"{path}: cannot be read ({error}); delete the fold's folder to start it afresh") from error
    for key, value in identity.items():
        if state["identity"].get(key) != value:
            raise TrainingError(
                f"{path}: was trained with {key} {state['identity'].get(key)}, now it is {value}; "
                "use the same plan, splits and seed, or delete the fold's folder to start it afresh"
            )
    network.load_state_dict(state["network"])
    optimizer.load_state_dict(state["optimizer"])
    return Progress(**state["progress"])
