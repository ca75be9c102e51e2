"""The state from which training continues. Written atomically, loaded without executing anything."""

import io
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from segpipe.artefact import write_atomically
from segpipe.errors import TrainingError
from segpipe.training.guide import Guide
from segpipe.training.optimise import WeightAverage
from segpipe.training.progress import Progress


@dataclass
class State:
    """Everything that changes in training. Patches and augmentation are functions of the iteration, and so is the learning rate."""

    network: torch.nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    average: WeightAverage | None
    progress: Progress
    best: dict[str, Tensor] | None = None
    """Weights of the best epoch, where training may stop early."""
    guide: Guide | None = None

    def keep_best(self) -> None:
        """Remember the network's weights as the best."""
        self.best = {name: p.detach().cpu().clone() for name, p in self.network.state_dict().items()}


def save_checkpoint(path: Path, state: State, identity: dict[str, str]) -> None:
    """Write the state; a reader sees the old one or the new one."""
    buffer = io.BytesIO()
    torch.save(
        {
            "network": state.network.state_dict(),
            "optimizer": state.optimizer.state_dict(),
            "scaler": state.scaler.state_dict(),
            "average": None if state.average is None else state.average.average,
            "best": state.best,
            "progress": asdict(state.progress),
            "guide": None if state.guide is None else state.guide.state_dict(),
            "random": {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all()},
            "identity": identity,
        },
        buffer,
    )
    # As it lies there: a copy of a large network's state is gigabytes.
    write_atomically(path, buffer.getbuffer())


def load_checkpoint(path: Path, state: State, identity: dict[str, str]) -> None:
    """Restore the state of an interrupted training, in place.

    Raises
    ------
    TrainingError
        If the file is damaged or belongs to another plan, split or seed.
    """
    try:
        saved: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds here; each means the same to the user
        raise TrainingError(f"{path}: cannot be read ({error}); delete the fold's folder to start it afresh") from error
    for key, value in identity.items():
        if saved["identity"].get(key) != value:
            raise TrainingError(
                f"{path}: was trained with {key} {saved['identity'].get(key)}, now it is {value}; "
                "use the same plan, splits, seed and terms of distillation, or delete the fold's folder to start it afresh"
            )
    state.network.load_state_dict(saved["network"])
    state.optimizer.load_state_dict(saved["optimizer"])
    if saved["scaler"]:
        state.scaler.load_state_dict(saved["scaler"])
    if state.average is not None and saved["average"] is not None:
        state.average.load(saved["average"])
    state.best = saved["best"]
    if state.guide is not None and saved.get("guide"):
        state.guide.load_state_dict(saved["guide"])
    state.progress = Progress(**saved["progress"])
    torch.set_rng_state(saved["random"]["cpu"])
    if len(saved["random"]["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(saved["random"]["cuda"])
