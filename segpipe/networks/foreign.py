"""Networks that others define: MONAI's, and those of packages that offer one by an entry point."""

import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from segpipe.errors import NetworkError
from segpipe.networks.catalogue import ENTRY_POINTS, MONAI, offered
from segpipe.networks.segmenter import Segmenter
from segpipe.networks.spec import NetworkSpec

_GIVEN = {"spatial_dims", "in_channels", "out_channels", "n_channels", "n_outputs", "dims", "patch_size"}


class Foreign(Segmenter):
    """A module that maps images to logits, or to a sequence of them, finest first."""

    def __init__(self, network: nn.Module, spec: NetworkSpec, n_outputs: int) -> None:
        super().__init__(spec.dims, spec.divisors)
        self.net, self.name, self.n_outputs = network, spec.architecture, n_outputs

    def logits(self, x: Tensor, *, every: bool) -> list[Tensor]:
        """See :meth:`Segmenter.logits`."""
        found = self.net(x)
        if isinstance(found, Tensor):
            # MONAI stacks heads along an axis of its own.
            heads = list(found.unbind(1)) if found.ndim == x.ndim + 1 else [found]
        elif isinstance(found, (list, tuple)) and all(isinstance(head, Tensor) for head in found):
            heads = list(found)
        else:
            raise NetworkError(
                f"network {self.name}: gave {type(found).__name__}; expected logits (N, K, ...), or a list of them"
            )
        for head in heads:
            if head.ndim != x.ndim or tuple(head.shape[:2]) != (len(x), self.n_outputs):
                raise NetworkError(
                    f"network {self.name}: gave a tensor of {tuple(head.shape)}; expected logits of {len(x)} images and "
                    f"{self.n_outputs} outputs, or a list of such"
                )
        if heads[0].shape[2:] != x.shape[2:]:
            raise NetworkError(
                f"network {self.name}: made {tuple(heads[0].shape[2:])} of an image of {tuple(x.shape[2:])}; expected the same shape"
            )
        return heads if every else heads[:1]


def build_monai(spec: NetworkSpec, n_channels: int, n_outputs: int) -> Foreign:
    """Build a network of ``monai.networks.nets`` by its class name.

    Raises
    ------
    NetworkError
        If there is no such network for segmentation, or it does not take these options.
    """
    import monai.networks.nets as nets

    name = spec.architecture.removeprefix(MONAI)
    made = getattr(nets, name, None)
    if not inspect.isclass(made) or not issubclass(made, nn.Module):
        raise NetworkError(
            f"network {spec.architecture}: MONAI has none of that name; those for images are {', '.join(monai_names())}"
        )
    takes = inspect.signature(made).parameters
    if not _segments(made):
        raise NetworkError(
            f"network {spec.architecture}: takes no spatial_dims, in_channels and out_channels, so it is not for segmentation; "
            f"use one of {', '.join(monai_names())}"
        )
    given: dict[str, Any] = {"spatial_dims": spec.dims, "in_channels": n_channels, "out_channels": n_outputs}
    if "img_size" in takes:
        given["img_size"] = spec.patch_size
    return Foreign(_made(made, spec, given), spec, n_outputs)


def monai_names() -> list[str]:
    """Names of MONAI's networks that map images of a number of dimensions and channels to as many outputs as asked for."""
    import monai.networks.nets as nets

    # Aliases are several names of one class.
    return sorted({c.__name__ for c in vars(nets).values() if inspect.isclass(c) and _segments(c)})


def _segments(made: type) -> bool:
    return {"spatial_dims", "in_channels", "out_channels"} <= set(inspect.signature(made).parameters)


def build_offered(spec: NetworkSpec, n_channels: int, n_outputs: int) -> Foreign:
    """Build the network of an entry point: a function of dims, n_channels, n_outputs, patch_size and its own options.

    Raises
    ------
    NetworkError
        If it cannot be imported, does not take these options, or returns no module.
    """
    try:
        made: Callable[..., Any] = offered(spec.architecture).load()
    except Exception as error:
        raise NetworkError(
            f"network {spec.architecture}: {spec.package} cannot be imported ({type(error).__name__}: {error})"
        ) from error
    told = {"dims": spec.dims, "n_channels": n_channels, "n_outputs": n_outputs, "patch_size": spec.patch_size}
    takes = inspect.signature(made).parameters
    network = _made(made, spec, {name: value for name, value in told.items() if name in takes})
    if not isinstance(network, nn.Module):
        raise NetworkError(
            f"network {spec.architecture}: its entry point in {ENTRY_POINTS} returned {type(network).__name__}; expected a torch module"
        )
    return Foreign(network, spec, n_outputs)


def _made(made: Callable[..., Any], spec: NetworkSpec, given: dict[str, Any]) -> Any:
    """Call with what segpipe gives and what the user asked for, and say what is wrong with the latter."""
    takes = inspect.signature(made).parameters
    open_ended = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in takes.values())
    own = [name for name in takes if name not in {*given, *_GIVEN}]
    taken = [name for name in spec.options if name in given or name in _GIVEN]
    unknown = [name for name in spec.options if name not in takes and not open_ended]
    if taken or unknown:
        why = f"{', '.join(taken)} follows from the plan" if taken else f"it has no option {', '.join(unknown)}"
        raise NetworkError(f"network {spec.architecture}: {why}; its options are {', '.join(own) or 'none'}")
    try:
        return made(**given, **spec.options)
    except Exception as error:
        raise NetworkError(
            f"network {spec.architecture}: cannot be built with {spec.options or 'its defaults'} ({type(error).__name__}: {error}); "
            f"its options are {', '.join(own)}"
        ) from error
