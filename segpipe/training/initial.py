"""Weights to begin with: another model's, as far as they fit."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from segpipe.core.regular import lies
from segpipe.core.system_names import real_path
from segpipe.errors import ModelError
from segpipe.models.file import ModelFile, Weights, file_sha256, is_weights_file, model_in, read_weights, weights_digest
from segpipe.networks.catalogue import architecture_of
from segpipe.networks.segmenter import Segmenter
from segpipe.planning.adopt import channel_order


@dataclass(frozen=True)
class InitialWeights:
    """A fold of a trained model, or a file of bare weights."""

    path: Path
    fold: str | None
    """None of bare weights."""
    given: Weights | None = None
    """The weights themselves, where they have been read already."""
    channels: tuple[str, ...] = ()
    """Names of the model's channels; empty of bare weights."""

    @classmethod
    def of(cls, path: Path) -> "InitialWeights":
        """Choose the fold of a model file, or of the folder that holds one: the one of all cases, or the first; or bare weights.

        Raises
        ------
        ModelError
            If the file is no model.
        """
        if is_weights_file(path):
            if not lies(path):
                raise ModelError(f"--init-from {path}: no such file")
            return cls(real_path(path), None)
        file = real_path(model_in(path))
        model = ModelFile.read(file).single(file, "--init-from")
        if not model.folds:
            raise ModelError(f"{file}: holds no weights; train it, or export it again")
        fold = "all" if "all" in model.folds else min(model.folds)
        return cls(file, fold, channels=model.plan.channel_names)

    def describe(self) -> str:
        """File, fold and content."""
        fold = "" if self.fold is None else f" fold {self.fold}"
        content = file_sha256(self.path) if self.given is None else weights_digest(self.given)
        return f"{self.path}{fold}, sha256 {content[:12]}"

    def read(self) -> Weights:
        """Weights by name."""
        if self.given is not None:
            return self.given
        return read_weights(self.path) if self.fold is None else ModelFile.read(self.path).folds[self.fold]


def remark_on_channels(initial: InitialWeights, channels: tuple[str, ...]) -> str | None:
    """Return a sentence where a model's channels have other names, or another order, than the dataset's; None where they are alike."""
    theirs, ours = ", ".join(initial.channels), ", ".join(channels)
    if not initial.channels or theirs.casefold() == ours.casefold():
        return None
    if channel_order(initial.channels, channels) is not None:
        return f"channels are taken by their names: {theirs} in {initial.path}, {ours} in the dataset"
    return f"channels are taken in their order: {theirs} in {initial.path}, {ours} in the dataset; make sure that they mean the same"


def by_name(given: Weights, own: Weights, order: tuple[int, ...], architecture: str, path: Path) -> Weights:
    """Return weights whose first convolution takes the image's channels in another order.

    Parameters
    ----------
    given : dict
        Weights of the model.
    own : dict
        Weights of the network that they are for, in its order.
    order : tuple of int
        Where each of the network's channels stands among the model's; further inputs stay where they are.
    architecture : str
        Name of the network.
    path : Path
        File of the model, for the error.

    Raises
    ------
    ModelError
        If it is not known which weights see the image.
    """
    if architecture_of(architecture).layout != "unet":
        raise ModelError(
            f"{path}: its channels stand in another order than the dataset's, and of {architecture} it is not known which weights see "
            "them; name the dataset's channels in the model's order, and give its images so"
        )
    first = next(name for name, value in own.items() if value.ndim > 2)
    if first not in given or given[first].shape[1] < len(order):
        return given
    n_inputs = given[first].shape[1]
    return {**given, first: given[first][:, [*order, *range(len(order), n_inputs)]].contiguous()}


def take_over(
    network: Segmenter, initial: InitialWeights, channels: tuple[str, ...] = (), architecture: str = ""
) -> list[str]:
    """Load what fits by name and shape; return what was not loaded, with the reason.

    Parameters
    ----------
    network : Segmenter
    initial : InitialWeights
    channels : tuple of str
        Names of the network's channels: where the model has them in another order, they are taken by name.
    architecture : str
        Name of the network.

    Raises
    ------
    ModelError
        If no convolution fits, or channels in another order cannot be taken by name.
    """
    given, own = initial.read(), network.state_dict()
    order = channel_order(initial.channels, channels)
    if order is not None:
        given = by_name(given, own, order, architecture, initial.path)
    if initial.fold is None:
        given = network.fit_pretrained(given)
    fitting = {name: value for name, value in given.items() if name in own and own[name].shape == value.shape}
    if not any(value.ndim > 1 for value in fitting.values()):
        instead = "" if initial.fold is None else (
            "; give --init-from without a plan in the workspace (a new --work) to take over the model's own plan"
        )  # fmt: skip
        raise ModelError(f"{initial.path}: none of its convolutions fits the planned network{instead}")
    network.load_state_dict(fitting, strict=False)
    left = [f"{name}: {_reason(given.get(name), value)}" for name, value in own.items() if name not in fitting]
    return left + [f"{name}: the planned network has none" for name in given if name not in own]


def _reason(given: Tensor | None, own: Tensor) -> str:
    if given is None:
        return "the model has none"
    return f"{_shape(given)} in the model, {_shape(own)} in the planned network"


def _shape(weights: torch.Tensor) -> str:
    return "x".join(map(str, weights.shape))
