"""NIfTI-1 and NIfTI-2, in one file or as a pair, by nibabel's headers, which also hold sheared directions that ITK refuses.

Which part of a header is believed, and what is noted about the rest, is written in docs/conventions.md.
"""

import gzip
from math import prod
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from nibabel.nifti1 import Nifti1Header
from nibabel.nifti2 import Nifti2Header
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from segpipe.core.geometry import Floats, Grid
from segpipe.errors import UnreadableFileError
from segpipe.io.nifti_header import (
    FLIP_INDEX,
    QUATERNION_ROUNDING,
    Stored,
    believed,
    grid_of,
    notes_of,
    open_stored,
    voxels_of,
)
from segpipe.io.notes import Note
from segpipe.io.streams import is_gzip, require_no_second_volume, take

_LEAN = 1e-6
"""Largest difference of direction cosines from the nearest rotation that ITK takes for none."""
_LONGEST_NIFTI_1 = 32767
"""Most voxels along an axis that NIfTI-1 can state."""


def read_header(path: Path) -> tuple[Grid, int]:
    """Grid and number of channels."""
    stored = open_stored(path)
    n_channels = _n_channels(stored)
    return grid_of(stored), n_channels


def read(path: Path) -> tuple[NDArray[Any], Grid]:
    """Voxels (C, Z, Y, X) with the header's scaling applied (as float32 where there is one), and their grid."""
    stored = open_stored(path)
    n_channels, grid = _n_channels(stored), grid_of(stored)
    number = stored.header.get_data_dtype()
    n_bytes = prod(stored.shape) * number.itemsize
    taken = take(stored.voxels, _offset(stored), n_bytes)
    require_no_second_volume(path, taken, n_bytes)
    voxels = taken.content.view(number).reshape((*stored.spatial, n_channels), order="F")
    voxels = _scaled(voxels.astype(number.newbyteorder("="), copy=False), *_scaling(stored))
    return np.ascontiguousarray(voxels.transpose(3, 2, 1, 0)), grid


def number_step(path: Path) -> float:
    """Distance of neighbouring values that a file can hold, where its header scales integers; else 0."""
    stored = open_stored(path)
    slope, _ = _scaling(stored)
    return abs(slope) if np.issubdtype(stored.header.get_data_dtype(), np.integer) and slope != 1 else 0.0


def header_notes(path: Path) -> list[Note]:
    """What is odd about a readable file's header, and what was believed."""
    stored = open_stored(path)
    notes = notes_of(stored)
    lower = path.name.lower()
    if stored.voxels == path and lower.endswith(".gz") != is_gzip(path):
        inside = (
            "is not compressed, although its name ends with .gz" if lower.endswith(".gz") else "is compressed by gzip"
        )
        notes.append(Note("note", f"the file {inside}; it is read as it is"))
    return notes


def files_behind(path: Path) -> list[Path]:
    """The file, and the one with the voxels of a pair."""
    try:
        voxels = voxels_of(path)
    except UnreadableFileError:
        return [path]
    return [path, voxels]


def write_labels_like(source: Path, output: Path, labels: NDArray[Any]) -> None:
    """Write an array (Z, Y, X) with the source's header: class, byte order, sform and qform with their codes, units, description.

    The bytes of the geometry are copied. Where nibabel or SimpleITK could not open the result, what they stumble over is mended.
    """
    stored = open_stored(source)
    # A source of one slice or with a trailing axis of length 1 keeps its number of axes.
    shape = stored.shape if prod(stored.shape) == labels.size else labels.shape[::-1]
    header = _copied(stored, shape)
    header["dim"] = [len(shape), *shape, *[1] * (7 - len(shape))]
    header.set_data_dtype(labels.dtype)
    header.set_slope_inter(1, 0)
    header["cal_max"] = header["cal_min"] = 0
    header.set_intent("none")
    _mend(stored, header)
    voxels = labels.transpose(2, 1, 0).astype(header.get_data_dtype(), copy=False)
    _save(header.binaryblock + bytes(4) + voxels.tobytes(order="F"), output)


def _copied(stored: Stored, shape: tuple[int, ...]) -> Any:
    """The stored header as that of one file: NIfTI-1, which SimpleITK opens, or NIfTI-2 where an axis is too long for it."""
    is_first = stored.header.sizeof_hdr == Nifti1Header.sizeof_hdr
    if is_first or max(shape) > _LONGEST_NIFTI_1:
        single = Nifti1Header if is_first else Nifti2Header
        header = single(stored.header.binaryblock, endianness=stored.header.endianness, check=False)
    else:
        single = Nifti1Header
        header = single(endianness=stored.header.endianness)
        for name in set(header.keys()) & set(stored.header.keys()) - {"sizeof_hdr", "magic", "vox_offset", "dim"}:
            header[name] = stored.header[name]
    header["magic"], header["vox_offset"] = single.single_magic, single.single_vox_offset
    return header


def write(output: Path, array: NDArray[Any], grid: Grid) -> None:
    """Write an array (Z, Y, X) on a grid as NIfTI-1 in millimetres, with its sform, and its nearest rotation as qform."""
    affine = grid.affine @ FLIP_INDEX
    image = nibabel.Nifti1Image(array.transpose(2, 1, 0), affine)
    image.header.set_xyzt_units("mm")
    image.header.set_sform(affine, code=1)
    image.header.set_qform(affine, code=1)
    _save(image.to_bytes(), output)


def _save(content: bytes, output: Path) -> None:
    if output.name.lower().endswith(".gz"):
        # No file name and no time in the gzip header: the same voxels give the same bytes.
        with (
            output.open("wb") as raw,
            gzip.GzipFile(filename="", fileobj=raw, mode="wb", compresslevel=5, mtime=0) as packed,
        ):
            packed.write(content)
    else:
        output.write_bytes(content)


def _mend(stored: Stored, header: Any) -> None:
    """Change what keeps a copied header from being opened: a broken sform or qform, or directions that only ITK refuses."""
    affine, part = believed(stored)
    if stored.has_sform and part == "qform":
        header.set_sform(affine, code=int(stored.header["sform_code"]))
    if part == "qform" and stored.quaternion_excess >= QUATERNION_ROUNDING:
        _set_qform(header, affine, int(stored.header["qform_code"]))
    usable = stored.has_qform and stored.qform_problem is None
    if part == "sform" and not usable and _lean(affine) > _LEAN:
        _set_qform(header, affine, code=1)


def _set_qform(header: Any, affine: Floats, code: int) -> None:
    """Set a qform that no reader finds longer than 1, and leave usable voxel sizes as they are."""
    sizes = np.array(header["pixdim"][1:4])
    header.set_qform(affine, code=code)
    quaternion = np.array([float(header[f"quatern_{axis}"]) for axis in "bcd"])
    if (excess := float(np.square(quaternion).sum() - 1)) > 0:
        for axis, value in zip("bcd", quaternion / np.sqrt(1 + excess), strict=True):
            header[f"quatern_{axis}"] = value
    if (np.isfinite(sizes) & (sizes > 0)).all():
        header["pixdim"][1:4] = sizes


def _lean(affine: Floats) -> float:
    """Largest difference of direction cosines from those of the nearest rotation, or rotation and flip."""
    direction = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    left, _, right = np.linalg.svd(direction)
    return float(np.abs(left @ right - direction).max())


def _n_channels(stored: Stored) -> int:
    shape = stored.shape
    if len(shape) < 2 or min(shape) < 1:
        raise UnreadableFileError(
            f"{stored.path}: shape (x, y, z) is {shape}; expected two to four axes, none of them empty"
        )
    spare = [axis for axis in range(3, len(shape)) if shape[axis] != 1]
    # ITK writes the components of a voxel behind a time axis of one element.
    if len(spare) > 1 or (spare and spare[0] > 4):
        raise UnreadableFileError(
            f"{stored.path}: shape (x, y, z, t, ...) is {shape}, {len(shape)} axes; "
            "expected three, or four with the channels last (or five, the fourth of one element)"
        )
    return shape[spare[0]] if spare else 1


def _offset(stored: Stored) -> int:
    """First byte of the voxels; 0 in a single file means: behind the header."""
    stated = float(stored.header["vox_offset"])
    if not 0 <= stated < 2**62:
        raise UnreadableFileError(
            f"{stored.path}: vox_offset is {stated:g}; expected 0, or the first byte of the voxels"
        )
    first = 0 if stored.voxels != stored.path else int(stored.header.single_vox_offset)
    return max(int(stated), first)


def _scaling(stored: Stored) -> tuple[float, float]:
    """Slope and intercept; 1 and 0 where the header has none that is usable."""
    try:
        slope, inter = stored.header.get_slope_inter()
    except HeaderDataError as error:
        raise UnreadableFileError(f"{stored.path}: {error}; set scl_slope and scl_inter in the header") from error
    return (1.0, 0.0) if slope is None else (float(slope), float(inter))


def _scaled(voxels: NDArray[Any], slope: float, inter: float) -> NDArray[Any]:
    """Voxels with slope and intercept, which nibabel alone would apply in float64."""
    if (slope, inter) == (1, 0):
        return voxels
    scaled = voxels.astype(np.float32)
    scaled *= np.float32(slope)
    scaled += np.float32(inter)
    return scaled
