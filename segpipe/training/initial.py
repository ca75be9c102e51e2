"""Weights to begin with: another model's, as far as they fit."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from segpipe.errors import ModelError
from segpipe.models.file import ModelFile, Weights, file_sha256, is_weights_file, model_in, read_weights, weights_digest
from segpipe.networks.segmenter import Segmenter


@dataclass(frozen=True)
class InitialWeights:
    """A fold of a trained model, or a file of bare weights."""

    path: Path
    fold: str | None
    """None of bare weights."""
    given: Weights | None = None
    """The weights themselves, where they have been read already."""

    @classmethod
    def of(cls, path: Path) -> "InitialWeights":
        """Choose the fold of a model file, or of the folder that holds one: the one of all cases, or the first; or bare weights.

        Raises
        ------
        ModelError
            If the file is no model.
        """
        if is_weights_file(path):
            if not path.is_file():
                raise ModelError(f"--init-from {path}: no such file")
            return cls(path.resolve(), None)
        file = model_in(path).resolve()
        folds = ModelFile.read(file).single(file, "--init-from").folds
        return cls(file, "all" if "all" in folds else min(folds))

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


def take_over(network: Segmenter, initial: InitialWeights) -> list[str]:
    """Load what fits by name and shape; return what was not loaded, with the reason.

    Raises
    ------
    ModelError
        If no convolution fits.
    """
    given, own = initial.read(), network.state_dict()
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
