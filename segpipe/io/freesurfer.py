"""FreeSurfer's .mgh and .mgz, read by nibabel. Results for them are NIfTI, which other programs open."""

from io import BytesIO
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from nibabel.freesurfer.mghformat import MGHError
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from segpipe.core.geometry import Grid
from segpipe.errors import UnreadableFileError
from segpipe.io.nifti_header import FLIP_INDEX
from segpipe.io.notes import Note, shear_notes, size_notes
from segpipe.io.streams import first_bytes, take

_HEADER = 284
"""Bytes of a header; the voxels follow."""


def read_header(path: Path) -> tuple[Grid, int]:
    """Grid and number of channels (frames)."""
    header = _open(path)
    return _grid(path, header), _shape(path, header)[3]


def read(path: Path) -> tuple[NDArray[Any], Grid]:
    """Voxels (C, Z, Y, X), and their grid."""
    header = _open(path)
    grid, shape, number = _grid(path, header), _shape(path, header), header.get_data_dtype()
    # Behind the voxels are tags of any length.
    taken = take(path, _HEADER, int(np.prod(shape)) * number.itemsize)
    voxels = taken.content.view(number).astype(number.newbyteorder("="), copy=False).reshape(shape, order="F")
    return np.ascontiguousarray(voxels.transpose(3, 2, 1, 0)), grid


def header_notes(path: Path) -> list[Note]:
    """What is odd about a readable file's header, and what was believed."""
    header = _open(path)
    grid = _grid(path, header)
    notes = []
    if not _states_position(path):
        notes.append(
            Note(
                "note", "the header states no position: FreeSurfer's usual axes (left, inferior, anterior) are assumed"
            )
        )
    return [*notes, *size_notes(grid), *shear_notes(grid)]


def _open(path: Path) -> Any:
    content = first_bytes(path, _HEADER)
    try:
        return nibabel.MGHImage.header_class.from_fileobj(BytesIO(content))
    except (MGHError, HeaderDataError, ValueError, KeyError, TypeError) as error:
        raise UnreadableFileError(f"{path}: not a readable FreeSurfer file ({' '.join(str(error).split())})") from error


def _states_position(path: Path) -> bool:
    return int.from_bytes(first_bytes(path, 30)[28:30], "big", signed=True) > 0


def _shape(path: Path, header: Any) -> tuple[int, int, int, int]:
    x, y, z, frames = (int(n) for n in header["dims"])
    if min(x, y, z, frames) < 1:
        raise UnreadableFileError(
            f"{path}: shape (x, y, z, frames) is {(x, y, z, frames)}; expected no axis to be empty"
        )
    return x, y, z, frames


def _grid(path: Path, header: Any) -> Grid:
    shape = _shape(path, header)[2::-1]
    try:
        affine = np.asarray(header.get_affine(), dtype=np.float64)
        return Grid.from_affine(shape, affine @ FLIP_INDEX, placed=_states_position(path))
    except ValueError as error:
        raise UnreadableFileError(f"{path}: {error}; repair the header's directions or voxel sizes") from error
