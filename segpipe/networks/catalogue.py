"""Which networks there are, what they may be asked for, and where they are built. No torch."""

from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Literal

from pydantic import Field, JsonValue, ValidationError

from segpipe.core.artefact import Record, first_problem
from segpipe.core.text import did_you_mean
from segpipe.errors import NetworkError
from segpipe.networks.spec import NetworkChoice, Norm

ENTRY_POINTS = "segpipe.networks"
"""Group of entry points by which another package offers networks."""
MONAI = "monai:"
PLANNED = "planned"
"""The plan's own U-Net at another width: patch, batch and poolings stay as they are."""
WELL_KNOWN = ("monai:SegResNet", "monai:SwinUNETR", "monai:MedNeXt")
"""Networks of MONAI that are listed without being asked for."""

Layout = Literal["unet", "fixed", "free"]


class NoOptions(Record):
    """There is nothing to choose."""


class UNetOptions(Record):
    """Options of the planned U-Nets."""

    width: float = Field(1.0, gt=0, le=4, allow_inf_nan=False)
    """Factor of all feature maps."""
    norm: Norm = "instance"


class NarrowedOptions(Record):
    """Options of the plan's own U-Net at another width."""

    width: float = Field(1.0, gt=0, le=4, allow_inf_nan=False)
    """Factor of all feature maps."""
    norm: Norm | None = None
    """None for the plan's."""
    multiple: int = Field(8, ge=1)
    """Feature maps are rounded to multiples of this; processors compute multiples of 8 fastest."""


class ScaledOptions(Record):
    """Options of a published network with batch normalisation."""

    width: float = Field(1.0, gt=0, le=4, allow_inf_nan=False)
    """Factor of all feature maps."""
    norm: Norm = "batch"


class DANetOptions(ScaledOptions):
    """Options of DANet."""

    backbone: Literal["resnet50", "resnet101"] = "resnet50"
    third_stage: Literal[1, 2] = 1
    """Dilation with which the third stage begins, before blocks of dilation 2: 1 in the authors' code. A plan that does not say is of an
    earlier version, whose networks began with 2."""


@dataclass(frozen=True)
class Architecture:
    """A network by name."""

    name: str
    about: str
    builder: str
    """``module:function``, which takes a NetworkSpec, input channels and outputs."""
    options: type[Record] | None
    """None where the network itself checks them."""
    layout: Layout
    """Who decides on poolings: the plan alone, the plan along each axis with their number fixed, or the network."""
    depth: int = 0
    """Poolings of a fixed layout."""
    smallest: int = 4
    """No axis is pooled below this many voxels."""
    divides: bool = True
    """Whether edges must be multiples of what the poolings of a fixed layout divide."""
    largest_divisor: int = 2**30
    """Patches are made multiples of what the poolings divide, up to this."""
    package: str | None = None
    """Distribution and version, where that is not segpipe."""

    def describe_options(self) -> str:
        """Options with their defaults, in words."""
        if self.options is None:
            return "its own arguments"
        return ", ".join(f"{key}={field.default}" for key, field in self.options.model_fields.items()) or "none"


_OWN = {
    a.name: a
    for a in (
        Architecture(
            "plain_unet",
            "nnU-Net's U-Net (Isensee et al. 2021)",
            "segpipe.networks.unet:build",
            UNetOptions,
            "unet",
        ),
        Architecture(
            "resenc_unet",
            "nnU-Net's U-Net with a residual encoder (Isensee et al. 2024)",
            "segpipe.networks.unet:build",
            UNetOptions,
            "unet",
        ),
        Architecture(
            PLANNED,
            "the plan's own U-Net at another width; patch, batch and poolings stay",
            "segpipe.networks.unet:build",
            NarrowedOptions,
            "unet",
        ),
        Architecture(
            "u2net",
            "U²-Net (Qin et al. 2020): a U-Net of residual U-blocks",
            "segpipe.networks.u2net:build",
            ScaledOptions,
            "fixed",
            depth=5,
            # It pools with the ceiling and interpolates back: nothing has to divide.
            divides=False,
            largest_divisor=8,
        ),
        Architecture(
            "u2netp",
            "U²-Netp: the small U²-Net",
            "segpipe.networks.u2net:build",
            ScaledOptions,
            "fixed",
            depth=5,
            divides=False,
            largest_divisor=8,
        ),
        Architecture(
            "danet",
            "DANet (Fu et al. 2019): dual attention over a dilated ResNet",
            "segpipe.networks.danet:build",
            DANetOptions,
            "fixed",
            depth=3,
            divides=False,
            # Its heads are as coarse as its bottleneck: pooled less, small images keep their structures.
            smallest=8,
        ),
        Architecture(
            "ternausnet",
            "TernausNet (Iglovikov and Shvets 2018): a U-Net over VGG-11",
            "segpipe.networks.ternausnet:build",
            NoOptions,
            "fixed",
            depth=5,
        ),
        Architecture(
            "unet3d_2016",
            "3D U-Net (Çiçek et al. 2016)",
            "segpipe.networks.unet3d_2016:build",
            ScaledOptions,
            "fixed",
            depth=3,
        ),
    )
}


def network_names() -> list[str]:
    """Names of the networks that need no further package than segpipe's own, those of installed packages, and MONAI's best known."""
    return [*_OWN, *(e.name for e in _offered()), *WELL_KNOWN]


def architecture_of(name: str) -> Architecture:
    """Return the network of a name.

    Raises
    ------
    NetworkError
        If there is none.
    """
    if name in _OWN:
        return _OWN[name]
    if name.startswith(MONAI):
        from importlib.metadata import version

        return Architecture(
            name,
            f"MONAI's {name.removeprefix(MONAI)}",
            "segpipe.networks.foreign:build_monai",
            None,
            "free",
            package=f"monai {version('monai')}",
        )
    for entry in _offered():
        if entry.name == name:
            package = f"{entry.dist.name} {entry.dist.version}" if entry.dist else entry.module
            return Architecture(
                name, f"from {package}", "segpipe.networks.foreign:build_offered", None, "free", package=package
            )
    raise NetworkError(
        f"network {name!r}: not known{did_you_mean(name, network_names())}; there are "
        f"{', '.join(network_names())}, any of MONAI's as monai:CLASS, and those of "
        f"installed packages (entry points of the group {ENTRY_POINTS})"
    )


def complete_options(choice: NetworkChoice) -> dict[str, JsonValue]:
    """Return the options of a choice with the defaults filled in.

    Raises
    ------
    NetworkError
        If one is unknown or wrong.
    """
    allowed = architecture_of(choice.name).options
    if allowed is None:
        fetched = next((name for name, value in choice.options.items() if fetches(name) and value), None)
        if fetched is not None:
            raise NetworkError(
                f"network {choice.name}: {fetched} would download weights, and segpipe opens no connection; leave it out, and give weights "
                "of a file with --init-from"
            )
        return dict(choice.options)
    try:
        found: dict[str, JsonValue] = allowed.model_validate(choice.options).model_dump(mode="json")
    except ValidationError as error:
        raise NetworkError(
            f"network {choice.name}: option {first_problem(error)}; "
            f"its options are {architecture_of(choice.name).describe_options()}"
        ) from error
    return found


def fetches(option: str) -> bool:
    """Tell whether an option of another package's network asks it to download weights, by its name."""
    return "pretrain" in option.lower()


def offered(name: str) -> EntryPoint:
    """Return the entry point of a network of another package."""
    return next(entry for entry in _offered() if entry.name == name)


def _offered() -> list[EntryPoint]:
    # A package cannot take the name of a network that others know.
    return [e for e in entry_points(group=ENTRY_POINTS) if e.name not in _OWN and not e.name.startswith(MONAI)]
