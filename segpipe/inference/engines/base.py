"""What an engine is, and the network that it computes."""

from contextlib import nullcontext
from textwrap import shorten
from typing import Any, Literal, Protocol

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from segpipe.errors import ModelError
from segpipe.execution.device import Runtime
from segpipe.models.file import Weights
from segpipe.networks.build import build_network
from segpipe.networks.segmenter import Segmenter
from segpipe.planning.schema import Configuration, Plan

_LONGEST = 200
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
        network.load_state_dict(_of_its_types(weights, network), assign=planned)
    except RuntimeError as error:
        package = configuration.network.package
        made_with = "" if package is None else f" (of {package} when it was trained)"
        _, *problems = str(error).splitlines() or [""]
        first = shorten(problems[0] if problems else str(error), _LONGEST, placeholder="...")
        raise ModelError(
            f"the weights do not fit the planned network{made_with}: {first} ({len(problems)} problem(s) in all)"
        ) from error
    return network.eval().requires_grad_(requires_grad=False), n_inputs


def prediction_network(plan: Plan, configuration: Configuration, weights: Weights) -> tuple[Segmenter, int]:
    """Build a network as :func:`make_network` does, without drawing from torch's random numbers: they are the calling program's."""
    with _OwnRandomNumbers():
        return make_network(plan, configuration, weights)


class _OwnRandomNumbers(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """First weights are drawn from a generator of this thread's own; trained ones take their place.

    torch's own generator belongs to all threads: putting it back afterwards would let another thread draw the same numbers twice.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.generator = torch.Generator()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = dict(kwargs or {})
        if torch.Tag.nondeterministic_seeded in func.tags:
            if not _takes_generator(func) and "generator" in func.overloadpacket.overloads():
                func = func.overloadpacket.generator
            if _takes_generator(func) and given.get("generator") is None:
                given["generator"] = self.generator
        return func(*args, **given)


def _takes_generator(func: Any) -> bool:
    return any(argument.name == "generator" for argument in func._schema.arguments)


def precision_name(runtime: Runtime) -> str:
    """Number type that a runtime computes in."""
    return "float32" if runtime.autocast is None else str(runtime.autocast).removeprefix("torch.")


def _of_its_types(weights: Weights, network: Segmenter) -> Weights:
    """Return weights in the number types that a network has; what is not finite shows in what it computes."""
    own = network.state_dict()
    return {name: value.to(own[name].dtype) if name in own else value for name, value in weights.items()}
