"""What a case becomes when it is resampled, and whether it fits into memory: known before the array is made."""

from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

from segpipe.core.geometry import Shape, bounding_box, resampled_shape, triple
from segpipe.core.text import rounded
from segpipe.core.volume import Volume
from segpipe.errors import NoRoomError
from segpipe.execution.memory import USABLE, free_bytes
from segpipe.planning.schema import Configuration, Plan
from segpipe.preprocessing.prepare import Prepared, prepare, target_spacing

_ENLARGED = 8
"""An image that becomes so many times larger is another kind of image, or its header is wrong: twice as fine along each axis."""


@dataclass(frozen=True)
class Resampling:
    """A case before it is resampled, in the plan's axis order."""

    shape: Shape
    """Voxels of the box that is resampled."""
    spacing_mm: tuple[float, ...]
    to_spacing_mm: tuple[float, ...]
    n_channels: int
    n_copies: int = 1
    """Copies of the resampled image that are held at a time."""

    @property
    def to_shape(self) -> Shape:
        """Shape that it will have."""
        return resampled_shape(self.shape, self.spacing_mm, self.to_spacing_mm)

    @property
    def needed_bytes(self) -> int:
        """What is held at most: the normalised image, labels and their indices; resampled the image, indices, and the sampler's mask."""
        native, resampled = prod(self.shape), _voxels(self.to_shape)
        return native * (4 * self.n_channels + 5) + resampled * (4 * self.n_channels * self.n_copies + 3)

    def describe(self) -> str:
        """Sizes before and after, in words."""
        return (
            f"voxel size {_in_mm(self.spacing_mm)} mm, training {_in_mm(self.to_spacing_mm)} mm: "
            f"{_by(self.shape)} would become {_by(self.to_shape)} voxels"
        )

    def require_room(self, free: int | None = None) -> None:
        """Raise unless it fits into the free memory.

        Parameters
        ----------
        free : int, optional
            Bytes that may be taken; measured unless given.

        Raises
        ------
        NoRoomError
            With both voxel sizes, both shapes, and the memory.
        """
        free = free_bytes() if free is None else free
        if self.needed_bytes > USABLE * free:
            raise NoRoomError(
                f"out of memory: {self.describe()}, {rounded(self.needed_bytes / 1e9)} GB of {rounded(free / 1e9)} GB free; "
                "check the header's units, or use a machine with more memory"
            )

    def remark(self) -> str | None:
        """Return a sentence where the case becomes so much larger that it takes long; None where it does not."""
        if _voxels(self.to_shape) < _ENLARGED * prod(self.shape):
            return None
        times = _voxels(self.to_shape) / prod(self.shape)
        return f"{self.describe()}, {times:,.0f} times as many, which takes long; check the header's units unless that is meant"


def resampling_of(
    shape: tuple[int, ...],
    spacing_mm: tuple[float, ...],
    plan: Plan,
    configuration: Configuration,
    *,
    n_copies: int = 1,
) -> Resampling:
    """Return what becomes of a box of voxels.

    Parameters
    ----------
    shape : tuple of int
        (z, y, x) in the plan's orientation, before its transpose.
    spacing_mm : tuple of float
        Likewise.
    plan : Plan
    configuration : Configuration
    n_copies : int
        Copies of the resampled image that are held at a time.
    """
    order = plan.transpose_forward
    spacing = tuple(spacing_mm[a] for a in order)
    return Resampling(
        triple([shape[a] for a in order]),
        spacing,
        target_spacing(configuration, spacing),
        len(plan.channel_names),
        n_copies,
    )


def resampling_of_image(image: Volume, plan: Plan, configuration: Configuration, *, n_copies: int = 1) -> Resampling:
    """Return what becomes of an image (C, Z, Y, X): of its non-zero box where the whole would not fit, or becomes much larger."""
    grid = image.grid
    whole = resampling_of(grid.shape, grid.spacing_mm, plan, configuration, n_copies=n_copies)
    if whole.remark() is None and whole.needed_bytes <= USABLE * free_bytes():
        return whole
    inside = (image.array != 0).any(axis=0)
    if not inside.any():
        return whole
    box = triple([s.stop - s.start for s in bounding_box(inside)])
    return resampling_of(box, grid.spacing_mm, plan, configuration, n_copies=n_copies)


def prepare_where_it_fits(
    image: Volume, labels: NDArray[np.unsignedinteger] | None, plan: Plan, configuration: Configuration
) -> Prepared:
    """Prepare a case as :func:`segpipe.preprocessing.prepare.prepare` does, unless it would exhaust the memory.

    Raises
    ------
    CaseError
        If it would not fit (NoRoomError), or cannot be prepared.
    """
    resampling_of_image(image, plan, configuration).require_room()
    return prepare(image, labels, plan, configuration)


def _voxels(shape: tuple[int, ...]) -> int:
    # Python's own numbers have no largest one.
    return prod(int(n) for n in shape)


def _in_mm(spacing: tuple[float, ...]) -> str:
    return " x ".join(rounded(s) for s in spacing)


def _by(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
