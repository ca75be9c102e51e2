"""What a network is, as data. No torch."""

import json
import re
from hashlib import sha256
from math import prod
from typing import Annotated, Literal, Self, get_args

from pydantic import Field, JsonValue, model_validator

from segpipe.core.artefact import Record
from segpipe.errors import NetworkError

_LONGEST_TEXT = 1000
_MOST_WEIGHTS = 2**31
Step = Annotated[int, Field(ge=1, le=127)]
"""An edge of a kernel, or a stride."""
Count = Annotated[int, Field(ge=1, le=65_536)]
_LONGEST = 40
"""Characters of a network in a folder's name: on Windows a whole path has 259, and most of them are the user's."""

Norm = Literal["instance", "batch", "group"]


class NetworkChoice(Record):
    """A network by name, with the options it is given; what a plan makes of it is a :class:`NetworkSpec`."""

    name: str = "plain_unet"
    """A name of `segpipe networks`, ``monai:CLASS``, or that of an installed package's entry point."""
    options: dict[str, JsonValue] = {}

    @property
    def slug(self) -> str:
        """Name and options as part of a folder's name; what cannot be read from it is distinguished by a digest."""
        shown = "".join(f"_{key}={json.dumps(value)}" for key, value in sorted(self.options.items()))
        plain = (self.name + shown).replace(":", "-").replace('"', "")
        safe = re.sub(r"[^\w.=-]+", "-", plain)[:_LONGEST]
        return safe if safe == plain else f"{safe}_{sha256(self.text.encode()).hexdigest()[:8]}"

    @property
    def text(self) -> str:
        """As it is written on the command line."""
        options = ",".join(f"{key}={json.dumps(value)}" for key, value in sorted(self.options.items()))
        return f"{self.name}:{options}" if options else self.name


class NetworkSpec(Record):
    """A planned network. Tuples run from the highest resolution to the lowest; kernels and strides are (z, y, x) or (y, x)."""

    architecture: str = Field(max_length=_LONGEST_TEXT)
    features: tuple[Count, ...] = ()
    """Feature maps of each resolution, where the plan chooses them (U-Nets)."""
    kernel_sizes: tuple[tuple[Step, ...], ...] = ()
    strides: tuple[tuple[Step, ...], ...] = Field(min_length=1)
    """Pooling before each resolution, the first one 1; of a network that the plan does not lay out, 1 only."""
    encoder_blocks: tuple[Count, ...] = ()
    """Convolutions (plain_unet) or residual blocks (resenc_unet) of each encoder stage."""
    decoder_convs: tuple[Count, ...] = ()
    """Convolutions of each decoder stage, highest resolution last as in nnU-Net."""
    divisors: tuple[Count, ...] = ()
    """What input edges are padded to multiples of; empty for the product of the strides."""
    patch_size: tuple[Count, ...] = ()
    """Patch that it was planned for, where a network is built for one size."""
    options: dict[str, JsonValue] = {}
    """What the network was asked for beyond its name, the defaults included."""
    package: str | None = None
    """Distribution and version that the network comes from, where that is not segpipe."""

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        dims, n = self.dims, len(self.strides)
        if dims not in (2, 3):
            raise ValueError(f"strides have {dims} axes; expected 2 or 3")
        for name in ("strides", "kernel_sizes"):
            if any(len(sizes) != dims for sizes in getattr(self, name)):
                raise ValueError(f"{name} have other numbers of axes than {dims}")
        for name, expected in (("features", n), ("kernel_sizes", n), ("encoder_blocks", n), ("decoder_convs", n - 1)):
            found = len(getattr(self, name))
            if found not in (0, expected):
                raise ValueError(f"{name} are of {found} stages; expected {expected}, for {n} strides")
        for name in ("divisors", "patch_size"):
            if len(getattr(self, name)) not in (0, dims):
                raise ValueError(f"{name} has {len(getattr(self, name))} values; expected {dims}")
        if self.features and set(self.strides[0]) != {1}:
            raise ValueError(f"the first of the strides is {list(self.strides[0])}; expected 1 along each axis")
        norm = self.options.get("norm", "instance")
        if self.features and (not isinstance(norm, str) or norm not in get_args(Norm)):
            raise ValueError(f"options.norm is {str(norm)[:40]!r}; expected one of {', '.join(get_args(Norm))}")
        kernels = self.kernel_sizes or ((1,) * dims,) * n
        widths = (*self.features[:1], *self.features)
        for kernel, before, after in zip(kernels, widths, self.features, strict=False):
            if prod(kernel) * before * after > _MOST_WEIGHTS:
                raise ValueError(f"features: a convolution from {before} to {after} features is larger than any memory")
        return self

    @property
    def dims(self) -> int:
        """2 or 3."""
        return len(self.strides[0])

    @property
    def norm(self) -> Norm:
        """Normalisation of its feature maps."""
        return self.options.get("norm", "instance")  # type: ignore[return-value]


def parse_choice(text: str) -> NetworkChoice:
    """Read ``NAME`` or ``NAME:key=value,...``; values are JSON, or plain words.

    Raises
    ------
    NetworkError
        If it is written in another way.
    """
    match = re.fullmatch(r"(?P<name>(?:monai:)?[\w.-]+)(?::(?P<options>.+))?", text)
    if match is None:
        raise NetworkError(
            f"network {text!r}: expected NAME or NAME:key=value,... such as u2net or monai:SegResNet:init_filters=16"
        )
    try:
        return NetworkChoice(name=match["name"], options=parse_options(match["options"] or ""))
    except ValueError as error:
        raise NetworkError(f"network {text!r}: {error}") from error


def parse_options(text: str) -> dict[str, JsonValue]:
    """Read ``key=value,...``; values are JSON, or plain words.

    Raises
    ------
    ValueError
        If it is written in another way.
    """
    options: dict[str, JsonValue] = {}
    for part in _parts(text):
        key, equals, value = part.partition("=")
        if key.strip() in options:
            raise ValueError(f"{key.strip()} is given twice; expected it once")
        if not equals or not all(part.isidentifier() for part in key.strip().split(".")):
            raise ValueError(f"{part!r} is no option; expected key=value")
        options[key.strip()] = _value(value.strip())
    return options


def _parts(text: str) -> list[str]:
    """Parts between commas; those between brackets belong to a value."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "[{") - (letter in "]}")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part for part in parts if part]


def _value(text: str) -> JsonValue:
    try:
        value: JsonValue = json.loads(text)
    except json.JSONDecodeError:
        return text
    return value
