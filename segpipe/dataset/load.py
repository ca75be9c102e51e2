"""Read a case: its channels and its label on one grid, in canonical orientation."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from segpipe.errors import CaseError, GeometryMismatchError
from segpipe.geometry import (
    GRID_TOLERANCE_VOXELS,
    Grid,
    Orientation,
    canonical_orientation,
    largest_displacement_mm,
    same_grid,
)
from segpipe.io.formats import read_volume
from segpipe.volume import Volume, stack_channels


@dataclass(frozen=True)
class LoadedImage:
    """An image in canonical orientation, and what brings an array back onto the file's own axes."""

    volume: Volume
    stored_grid: Grid
    orientation: Orientation

    def to_stored(self, array: NDArray[Any]) -> NDArray[Any]:
        """Turn an array (Z, Y, X) in canonical orientation back to the file's axes."""
        return np.ascontiguousarray(self.orientation.inverse().apply(array))


def load_image(
    case_id: str, paths: list[Path], channel_names: tuple[str, ...], to: Literal["canonical", "as_stored"] = "canonical"
) -> LoadedImage:
    """Read and join the channels of a case, as float32.

    Parameters
    ----------
    case_id : str
    paths : list of Path
        One file a channel, or one with all channels.
    channel_names : tuple of str
        The dataset's.
    to : "canonical" or "as_stored"
        Orientation of the result; imported models were trained on images as they are stored.

    Raises
    ------
    UnreadableFileError, GeometryMismatchError, CaseError
        If a file cannot be read, channels lie on different grids, or their number is not the dataset's.
    """
    volumes = [read_volume(path) for path in paths]
    for path, volume in zip(paths[1:], volumes[1:], strict=True):
        require_same_grid(case_id, paths[0].name, volumes[0].grid, path.name, volume.grid)
    stacked = stack_channels(volumes)
    n_channels = stacked.array.shape[0]
    if n_channels != len(channel_names):
        raise CaseError(
            f"case {case_id!r}: {n_channels} channel(s) in {', '.join(p.name for p in paths)}; "
            f"expected {len(channel_names)} ({', '.join(channel_names)})"
        )
    orientation = canonical_orientation(stacked.grid) if to == "canonical" else Orientation()
    return LoadedImage(stacked.reoriented(orientation), stacked.grid, orientation)


def read_labels(case_id: str, path: Path) -> Volume:
    """Read a label file, (1, Z, Y, X) on its own axes and in its own number type.

    Raises
    ------
    UnreadableFileError, CaseError
        If it cannot be read or has several channels.
    """
    volume = read_volume(path)
    if volume.array.shape[0] != 1:
        raise CaseError(
            f"case {case_id!r}: label {path.name} has {volume.array.shape[0]} channels; expected one label value a voxel"
        )
    return volume


def labels_on(case_id: str, image: LoadedImage, labels: Volume) -> NDArray[Any]:
    """Bring labels onto the axes of their image, (Z, Y, X).

    Raises
    ------
    GeometryMismatchError
        If they lie on another grid.
    """
    require_same_grid(case_id, "image", image.stored_grid, "label", labels.grid)
    reoriented: NDArray[Any] = image.orientation.apply(labels.array[0])
    return reoriented


def require_same_grid(case_id: str, first_name: str, first: Grid, second_name: str, second: Grid) -> None:
    """Raise GeometryMismatchError, with both grids printed, unless they agree."""
    if same_grid(first, second):
        return
    apart = (
        ""
        if first.shape != second.shape
        else f"; corners lie up to {largest_displacement_mm(first, second):.3g} mm apart"
    )
    raise GeometryMismatchError(
        f"case {case_id!r}: {first_name} is on {first.describe()} but {second_name} is on {second.describe()}{apart}; "
        f"expected the same grid within {GRID_TOLERANCE_VOXELS} voxel: resample one onto the other, or repair its header"
    )
