"""Read a case: its channels and its label on one grid, in canonical orientation."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import affine_transform, gaussian_filter

from segpipe.core.geometry import Floats, Grid, Orientation, canonical_orientation, same_grid
from segpipe.core.labels import Labels, smallest_dtype
from segpipe.core.volume import Volume, stack_channels
from segpipe.dataset.grids import LabelFile, Placed, along_axes_of, onto_axes_of, require_same_grid
from segpipe.dataset.segments import joined_segments, segments_of
from segpipe.errors import CaseError, GeometryMismatchError
from segpipe.io.formats import number_step, read_as_nnunet, read_label_volume, read_volume, segment_keys
from segpipe.io.notes import Note

WHOLE_TOLERANCE = 1e-3
"""Distance from a whole number that resampling or scaling in single precision leaves."""
LARGEST_STEP = 0.5
"""Largest step of a header's scaling under which integers can be told from what lies between them."""
MIN_COVERAGE = 0.5
"""A channel that covers less of the first channel's grid than this is of another part of the body."""


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
    case_id: str,
    paths: list[Path],
    channel_names: tuple[str, ...],
    to: Literal["canonical", "as_stored"] = "canonical",
    *,
    resample_channels: bool = False,
    advice: str = "or give --resample-channels to segpipe check, plan, run or crossval",
) -> LoadedImage:
    """Read and join the channels of a case: 8- and 16-bit integers as they are when all channels agree, else float32.

    Parameters
    ----------
    case_id : str
    paths : list of Path
        One file a channel, or one with all channels.
    channel_names : tuple of str
        The dataset's.
    to : "canonical" or "as_stored"
        Orientation of the result; imported models were trained on images as they are stored.
    resample_channels : bool
        Bring channels on other grids onto the first one's.
    advice : str
        What else a user can do where channels lie on different grids.

    Raises
    ------
    UnreadableFileError, GeometryMismatchError, CaseError
        If a file cannot be read, channels lie on different grids, or their number is not the dataset's.
    """
    volumes = [read_volume(path) if to == "canonical" else read_as_nnunet(path) for path in paths]
    n_channels = sum(v.array.shape[0] for v in volumes)
    if n_channels != len(channel_names):
        raise CaseError(
            f"case {case_id!r}: {n_channels} channel(s) in {', '.join(p.name for p in paths)}; "
            f"expected {len(channel_names)} ({', '.join(channel_names)}): add what is missing, or leave the case out"
        )
    for number, (path, volume) in enumerate(zip(paths, volumes, strict=True)):
        if resample_channels:
            volumes[number] = onto_grid(case_id, path.name, volume, volumes[0].grid)
        else:
            require_same_grid(case_id, paths[0].name, volumes[0].grid, path.name, volume.grid, advice)
            volumes[number] = along_axes_of(volumes[0].grid, volume)
    stacked = stack_channels(volumes)
    orientation = canonical_orientation(stacked.grid) if to == "canonical" else Orientation()
    return LoadedImage(stacked.reoriented(orientation), stacked.grid, orientation)


def onto_grid(case_id: str, name: str, volume: Volume, grid: Grid) -> Volume:
    """Interpolate a channel linearly onto another grid, smoothed first where that is coarser; outside it is the channel's minimum.

    The smoothing is that of ``skimage.transform.resize(anti_aliasing=True)``: a Gaussian of (factor - 1) / 2 voxels.

    Raises
    ------
    GeometryMismatchError
        If the channel covers less than half of the grid.
    """
    aligned = along_axes_of(grid, volume)
    if same_grid(grid, aligned.grid):
        return aligned
    mapping = np.linalg.inv(volume.grid.affine) @ grid.affine
    covered = _coverage(mapping, volume.grid.shape, grid.shape)
    if covered < MIN_COVERAGE:
        raise GeometryMismatchError(
            f"case {case_id!r}: {name} covers {covered:.0%} of the first channel's grid, expected at least {MIN_COVERAGE:.0%}: "
            f"it is on {volume.grid.describe()}, the first on {grid.describe()}; the files do not belong together"
        )
    # Voxels of the channel in one voxel of the grid, along the channel's axes.
    factors = np.abs(mapping[:3, :3]).sum(axis=1)
    moved = np.empty((volume.array.shape[0], *grid.shape), dtype=np.float32)
    for channel, array in enumerate(volume.array):
        smooth = gaussian_filter(array.astype(np.float32), np.maximum((factors - 1) / 2, 0), mode="nearest")
        # Half a voxel around the outermost centres is still the channel's.
        affine_transform(smooth, mapping[:3, :3], mapping[:3, 3], grid.shape, moved[channel], order=1, mode="nearest")
    for z in range(grid.shape[0]):
        inside = _inside(mapping, volume.grid.shape, [np.array([z]), *(np.arange(n) for n in grid.shape[1:])])
        outside = np.logical_not(inside).reshape(grid.shape[1:])
        for channel, array in enumerate(volume.array):
            moved[channel, z][outside] = array.min()
    return Volume(moved, grid)


def _coverage(mapping: Floats, shape: tuple[int, ...], onto: tuple[int, ...]) -> float:
    """Share of a grid's voxels, on a coarse lattice, that fall into an array."""
    return float(_inside(mapping, shape, [np.linspace(0, n - 1, min(n, 16)) for n in onto]).mean())


def _inside(mapping: Floats, shape: tuple[int, ...], axes: list[NDArray[Any]]) -> NDArray[np.bool_]:
    """Which points of a lattice fall into an array's voxels, their outer halves included."""
    index = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1) @ mapping[:3, :3].T + mapping[:3, 3]
    # A hair more, for what rounding leaves.
    return np.asarray(((index >= -0.501) & (index <= np.array(shape) - 0.499)).all(axis=-1))


def read_labels(case_id: str, path: Path, declared: Labels | None = None) -> Volume:
    """Read a label file, (1, Z, Y, X) on its own axes, as ``read_label_file`` does, without its notes."""
    return read_label_file(case_id, path, declared).volume


def read_label_file(case_id: str, path: Path, declared: Labels | None = None) -> LabelFile:
    """Read a label file; one channel per label, and the segments of 3D Slicer, become one value per voxel.

    Values that are whole but for what rounding, or the scaling of the header, made of them are whole numbers.

    Parameters
    ----------
    case_id : str
    path : Path
    declared : Labels, optional
        Values that the channels of a one-hot file stand for, background first (it may be left out), then ascending; and the values
        that the names of segments stand for.

    Raises
    ------
    UnreadableFileError, CaseError
        If it cannot be read, or its channels are not one label each.
    """
    volume = read_label_volume(path, None if declared is None else declared.accepted)
    background = 0 if declared is None else declared.background
    segments = segments_of(path.name, segment_keys(path))
    if segments:
        joined, notes = joined_segments(case_id, path.name, volume.array, segments, declared)
        return LabelFile(Volume(joined[None], volume.grid), notes, may_be_part=True, background=background)
    if volume.array.shape[0] == 1:
        whole, notes = _made_whole(volume.array, number_step(path))
        return LabelFile(Volume(whole, volume.grid), notes, background=background)
    joined = _from_one_hot(case_id, path.name, volume.array, declared)
    return LabelFile(Volume(joined[None], volume.grid), background=background)


def _made_whole(stored: NDArray[Any], step: float) -> tuple[NDArray[Any], tuple[Note, ...]]:
    """Round values that lie as near to whole numbers as rounding, or a header's scaling by ``step``, leaves them.

    An integer that was saved with scaling comes back as a multiple of the step, at most half a step away. Above a step of a half, what
    was a whole number is no longer known.
    """
    if not np.issubdtype(stored.dtype, np.floating) or step > LARGEST_STEP:
        return stored, ()
    tolerance = max(WHOLE_TOLERANCE, 0.501 * step)
    with np.errstate(invalid="ignore"):
        whole = np.rint(stored)
        off = np.abs(stored - whole)
    largest = float(off.max(initial=0.0))
    # NaN is no number, and compares as false.
    if largest == 0 or not largest <= tolerance:
        return stored, ()
    how = f"scaled by {step:.4g} in the header" if step > 2 * WHOLE_TOLERANCE else "rounded"
    return whole, (
        Note("note", f"label values lie up to {largest:.2g} from whole numbers ({how}); they are made whole"),
    )


def _from_one_hot(
    case_id: str, name: str, channels: NDArray[Any], declared: Labels | None
) -> NDArray[np.unsignedinteger]:
    n = len(channels)
    if not all(bool(((c == 0) | (c == 1)).all()) for c in channels):
        raise CaseError(
            f"case {case_id!r}: label {name} has {n} channels that hold other values than 0 and 1: several raters or readings, or a "
            "colour picture; join raters to one label map first (a majority vote, or STAPLE as in SimpleITK's LabelVoting and STAPLE "
            "filters), and save a picture in grey"
        )
    together = np.zeros(channels.shape[1:], dtype=np.int32)
    for channel in channels:
        together += channel != 0
    if together.max() > 1:
        n_shared = int((together > 1).sum())
        raise CaseError(
            f"case {case_id!r}: label {name} has {n} channels, and {n_shared} voxels belong to several of them: if they are raters, "
            "join them first (a majority vote, or STAPLE); if they are structures that overlap, store one value for each "
            "combination and declare regions in dataset.json"
        )
    if declared is None:
        raise CaseError(
            f"case {case_id!r}: label {name} has one channel a label; declare the labels in dataset.json, so that it is known which "
            "value each channel stands for"
        )
    stands_for = declared.values if n == len(declared.values) else declared.values[1:]
    if len(stands_for) != n:
        raise CaseError(
            f"case {case_id!r}: label {name} has {n} channels; expected one for each of the declared values {list(declared.values)}, "
            "with or without the background's"
        )
    if n == len(declared.values) and together.min() == 0:
        raise CaseError(
            f"case {case_id!r}: label {name} has a channel for the background, and {int((together == 0).sum())} voxels belong to none; "
            "fill the background's channel, or leave it out"
        )
    joined = np.full(channels.shape[1:], declared.background, dtype=smallest_dtype(max(declared.values)))
    for value, channel in zip(stands_for, channels, strict=True):
        joined[channel != 0] = value
    return joined


def labels_on(case_id: str, image: LoadedImage, labels: LabelFile) -> Placed:
    """Bring labels onto the axes of their image, (Z, Y, X).

    Raises
    ------
    GeometryMismatchError
        If they lie on another grid.
    """
    placed = onto_axes_of(case_id, "image", image.stored_grid, "label", labels)
    return Placed(image.orientation.apply(placed.array), placed.notes)
