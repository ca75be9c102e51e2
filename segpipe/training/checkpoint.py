"""The state from which training continues. Written atomically, loaded without executing anything."""

import io
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from segpipe.core.artefact import Migration, migrated
from segpipe.core.whole import write_atomically
from segpipe.errors import ArtefactError, TrainingError
from segpipe.models.torch_file import load_tested
from segpipe.training.guide import Guide
from segpipe.training.optimise import WeightAverage
from segpipe.training.progress import Progress
from segpipe.version import __version__

_PINNED_BYTES = 2**26
_SCHEMA_VERSION = 2
_MIGRATIONS: dict[int, Migration] = {1: dict}
"""Version 1 knew no extensions."""


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
        weights = {name: p.detach() for name, p in self.network.state_dict().items()}
        self.best = {name: p.clone() if p.device.type == "cpu" else p for name, p in on_host(weights).items()}


def on_host(state: Any) -> Any:
    """Bring the tensors of nested dictionaries and lists to the host; a GPU is waited for once each 64 MiB, not once for each tensor.

    Parameters
    ----------
    state : dict, list or tuple
        What lies on the host, and what is no tensor, stays as it is.

    Returns
    -------
    dict, list or tuple
        Like ``state``; tensors of the device are copies in ordinary memory.
    """
    leaves, form = tree_flatten(state)
    there = [n for n, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and leaf.device.type == "cuda"]
    while there:
        n_together = _fitting([leaves[n] for n in there])
        held = [_begun(leaves[n].detach()) for n in there[:n_together]]
        torch.cuda.synchronize(leaves[there[0]].device)
        for n, tensor in zip(there[:n_together], held, strict=True):
            leaves[n] = tensor.clone()
        del held
        there = there[n_together:]
    return tree_unflatten(leaves, form)


def _begun(tensor: Tensor) -> Tensor:
    """Begin to copy a tensor to pinned memory; in its own memory format, which the optimiser's state has to keep."""
    # Pinned memory is never given back: little is used at a time.
    held = torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, pin_memory=True)
    return held.copy_(tensor, non_blocking=True)


def _fitting(tensors: list[Tensor]) -> int:
    """How many of the first tensors fit into the pinned memory that is used at a time: one at least."""
    ends = accumulate(t.nbytes for t in tensors)
    return max(sum(end <= _PINNED_BYTES for end in ends), 1)


def save_checkpoint(path: Path, state: State, identity: dict[str, str]) -> None:
    """Write the state; a reader sees the old one or the new one."""
    buffer = io.BytesIO()
    held = on_host(
        {
            "schema_version": _SCHEMA_VERSION,
            "made_by": __version__,
            "network": state.network.state_dict(),
            "optimizer": state.optimizer.state_dict(),
            "scaler": state.scaler.state_dict(),
            "average": None if state.average is None else state.average.average,
            "best": state.best,
            "progress": asdict(state.progress),
            "guide": None if state.guide is None else state.guide.state_dict(),
            "random": {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all()},
            "identity": identity,
        }
    )
    torch.save(held, buffer)
    # As it lies there: a copy of a large network's state is gigabytes.
    write_atomically(path, buffer.getbuffer())


def load_checkpoint(path: Path, state: State, identity: dict[str, str]) -> None:
    """Restore the state of an interrupted training, in place.

    Raises
    ------
    TrainingError
        If the file is damaged, from a newer version of segpipe, or belongs to another plan, split or seed.
    """
    try:
        saved: dict[str, Any] = load_tested(path)
        # Up to 0.1.0.dev5 it held no version.
        saved = migrated(
            {"schema_version": 1, **saved}, "checkpoint", _SCHEMA_VERSION, _MIGRATIONS, saved.get("made_by")
        )
    except ArtefactError as error:
        raise TrainingError(f"{path}: {error}") from error
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
