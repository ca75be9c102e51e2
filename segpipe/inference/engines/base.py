"""What an engine is, and the network that it computes."""

from contextlib import nullcontext
from typing import Literal, Protocol

import torch
from torch import Tensor

from segpipe.errors import ModelError
from segpipe.execution.device import Runtime
from segpipe.models.file import Weights
from segpipe.networks.build import build_network
from segpipe.networks.segmenter import Segmenter
from segpipe.planning.schema import Configuration, Plan

EngineName = Literal["auto", "torch", "openvino"]


Precision = Literal["auto", "float32", "float16", "bfloat16"]


class Engine(Protocol):
    """A network with its weights, ready to compute."""

    n_inputs: int
    """Channels of a tile."""
    batch: int
    """Tiles that are best computed together; as many or fewer are given."""
    precision: str

    def __call__(self, tiles: Tensor) -> Tensor:
        """Logits (N, K, *patch) of tiles (N, C, *patch)."""
        ...


def make_network(plan: Plan, configuration: Configuration, weights: Weights) -> tuple[Segmenter, int]:
    """Build the planned network with trained weights; returns it with its number of input channels.

    Raises
    ------
    ModelError
        If the weights are of another network.
    """
    n_inputs = plan.n_inputs(configuration)
    # A planned U-Net needs no first weights, and takes the trained ones as they are: no copy.
    planned = bool(configuration.network.encoder_blocks)
    with torch.device("meta") if planned else nullcontext():
        network = build_network(configuration.network, n_inputs, plan.labels.n_outputs)
    try:
        network.load_state_dict(weights, assign=planned)
    except RuntimeError as error:
        package = configuration.network.package
        made_with = "" if package is None else f" (of {package} when it was trained)"
        raise ModelError(f"the weights do not fit the planned network{made_with}: {error}") from error
    return network.eval().requires_grad_(requires_grad=False), n_inputs


def precision_name(runtime: Runtime) -> str:
    """Number type that a runtime computes in."""
    return "float32" if runtime.autocast is None else str(runtime.autocast).removeprefix("torch.")
