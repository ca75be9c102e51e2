"""Networks that others define: MONAI's, and those of packages that offer one by an entry point."""

import inspect
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from segpipe.errors import NetworkError
from segpipe.networks.catalogue import ENTRY_POINTS, MONAI, fetches, offered
from segpipe.networks.measure import heads_without_content
from segpipe.networks.segmenter import Segmenter
from segpipe.networks.spec import NetworkSpec

_SEGMENTERS = (
    "AHNet", "AttentionUnet", "BasicUNet", "BasicUNetPlusPlus", "DynUNet", "FlexibleUNet", "HighResNet", "MedNeXt", "SegResNet",
    "SegResNetDS", "SegResNetDS2", "SwinUNETR", "UNETR", "UNet", "VNet",
)  # fmt: skip
"""MONAI's networks that are made for segmentation. Any other one is tried before it is accepted."""
_TRIAL_OUTPUTS = 11
"""Outputs in a trial: a number that is no default of any network, so that what has as many channels are logits."""
_TRIAL_EDGES = (64, 96, 128)
"""Edges of the images in a trial: a network that refuses one size may take another."""

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
    if not _segments(made):
        raise NetworkError(
            f"network {spec.architecture}: takes no spatial_dims, in_channels and out_channels, so it is not for segmentation; "
            f"use one of {', '.join(monai_names())}"
        )
    if made.__name__ not in _SEGMENTERS:
        # Whatever the patch: one trial is enough.
        whole = spec.model_copy(update={"patch_size": (), "divisors": ()})
        _require_segmenter(whole.model_dump_json(), n_channels)
    return _monai(made, spec, n_channels, n_outputs)


def monai_names() -> list[str]:
    """Names of MONAI's networks that are made for segmentation."""
    import monai.networks.nets as nets

    return [name for name in _SEGMENTERS if hasattr(nets, name)]


def _monai(made: type, spec: NetworkSpec, n_channels: int, n_outputs: int) -> Foreign:
    given: dict[str, Any] = {"spatial_dims": spec.dims, "in_channels": n_channels, "out_channels": n_outputs}
    if "img_size" in inspect.signature(made).parameters:
        given["img_size"] = spec.patch_size
    return Foreign(_made(made, spec, given), spec, n_outputs)


@lru_cache(maxsize=256)
def _require_segmenter(spec_json: str, n_channels: int) -> None:
    """Refuse a network that does not map images to logits on their grid, such as a classifier or a discriminator.

    Raises
    ------
    NetworkError
        If its forward pass needs more than images, or if it gives no such logits of images of any size that is tried.
    """
    import monai.networks.nets as nets

    spec = NetworkSpec.model_validate_json(spec_json)
    made = getattr(nets, spec.architecture.removeprefix(MONAI))
    needed = _needed(made.forward)
    if len(needed) > 1:
        problem: str | None = f"its forward pass needs {', '.join(needed)}; expected images alone"
    else:
        problem = _problem_in_trial(made, spec, n_channels)
    if problem is not None:
        raise NetworkError(
            f"network {spec.architecture}: is not for segmentation: {problem}; use one of {', '.join(monai_names())}"
        )


def _problem_in_trial(made: type[nn.Module], spec: NetworkSpec, n_channels: int) -> str | None:
    """Why a network gives no logits; None where it does for one of the sizes. Wrong outputs are no matter of size."""
    problems = []
    for edge in _TRIAL_EDGES:
        patch = (edge,) * spec.dims
        tried = spec.model_copy(update={"patch_size": patch, "divisors": (1,) * spec.dims})
        where = f"in a trial with images of {'x'.join(map(str, patch))} and {_TRIAL_OUTPUTS} outputs it"
        # The weights of the network that is trained must not depend on whether there was a trial.
        with torch.random.fork_rng(devices=[]):
            network = _monai(made, tried, n_channels, _TRIAL_OUTPUTS)
        try:
            heads_without_content(network, n_channels, patch)
        except NetworkError as error:
            return f"{where} {str(error).removeprefix(f'network {spec.architecture}: ')}"
        except Exception as error:  # noqa: BLE001 - networks refuse sizes by errors of every kind
            message = (str(error).strip().splitlines() or ["no message"])[0]
            problems.append(f"{where} ended with {type(error).__name__}: {message}")
        else:
            return None
    return problems[0]


def _needed(forward: Callable[..., Any]) -> list[str]:
    """Arguments that a forward pass cannot do without."""
    _, *given = inspect.signature(forward).parameters.values()
    return [p.name for p in given if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]


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


def _is_on(takes: Mapping[str, inspect.Parameter], name: str) -> bool:
    return name in takes and takes[name].default is True


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
    # Weights come from a file or from training; a model of elsewhere may have been planned with another wish, or that be the default.
    silent = {
        name: False
        for name in {*spec.options, *takes}
        if fetches(name) and (spec.options.get(name) or _is_on(takes, name))
    }
    try:
        return made(**given, **(spec.options | silent))
    except Exception as error:
        raise NetworkError(
            f"network {spec.architecture}: cannot be built with {spec.options or 'its defaults'} ({type(error).__name__}: {error}); "
            f"its options are {', '.join(own)}"
        ) from error
