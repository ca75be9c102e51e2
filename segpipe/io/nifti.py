"""NIfTI-1 and NIfTI-2 by nibabel.

nibabel opens the files with sheared or not quite orthonormal directions that ITK refuses. The world is taken from the
sform if its code is positive, else the qform, else the voxel sizes alone (nibabel's own order). Where the lengths of
the sform's columns contradict the voxel sizes in pixdim, pixdim is believed, with the sform's directions and origin,
as ITK does: there are tools that write an sform of unit lengths beside the true sizes.
"""

import gzip
import zlib
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError
from numpy.typing import NDArray

from segpipe.errors import UnreadableFileError
from segpipe.geometry import Grid

_DAMAGE = (OSError, EOFError, zlib.error, ImageFileError, HeaderDataError, WrapStructError, ValueError)
SIZE_TOLERANCE = 1e-3
"""Relative difference of voxel sizes from which a header contradicts itself."""

_FLIP_INDEX = np.array([[0, 0, 1, 0], [0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1]], dtype=np.float64)


def read_header(path: Path) -> tuple[Grid, int]:
    """Grid and number of channels."""
    image = _open(path)
    return _grid(path, image), _n_channels(path, image.shape)


def read(path: Path) -> tuple[NDArray[Any], Grid]:
    """Voxels (C, Z, Y, X) with the header's scaling applied, and their grid."""
    image = _open(path)
    grid, n_channels = _grid(path, image), _n_channels(path, image.shape)
    try:
        voxels = np.asanyarray(image.dataobj)
    except _DAMAGE as error:
        raise UnreadableFileError(
            f"{path}: the voxels cannot be read, the file is truncated or damaged ({_one_line(error)}); copy it again from its source"
        ) from error
    voxels = voxels.reshape((*_spatial(image.shape), n_channels))
    return np.ascontiguousarray(voxels.transpose(3, 2, 1, 0)), grid


def header_notes(path: Path) -> list[str]:
    """What is odd about a readable file's header, and what was believed."""
    image = _open(path)
    if not _sizes_disagree(image):
        return []
    lengths, sizes = (
        " x ".join(f"{v:.4g}" for v in values)
        for values in (np.linalg.norm(image.affine[:3, :3], axis=0), _pixdim(image))
    )
    return [f"{path.name}: the sform says voxels of {lengths} mm (x, y, z), pixdim {sizes} mm; pixdim is believed"]


def write_labels_like(source: Path, output: Path, labels: NDArray[Any]) -> None:
    """Write labels (Z, Y, X) with the source's header: class, byte order, sform and qform with their codes, units, description."""
    image = _open(source)
    header = image.header.copy()
    header.set_data_dtype(labels.dtype)
    header.set_slope_inter(1, 0)
    header["cal_max"] = header["cal_min"] = 0
    header.set_intent("none")
    if len(header.extensions):
        header.extensions.clear()
    voxels = labels.transpose(2, 1, 0)
    # A source of one slice or with a trailing axis of length 1 keeps its number of axes.
    shape = image.shape if int(np.prod(image.shape)) == labels.size else voxels.shape
    _save(type(image)(voxels.reshape(shape), None, header), output)


def write(output: Path, array: NDArray[Any], grid: Grid) -> None:
    """Write an array (Z, Y, X) on a grid as NIfTI-1 in millimetres."""
    image = nibabel.Nifti1Image(array.transpose(2, 1, 0), grid.affine @ _FLIP_INDEX)
    image.header.set_xyzt_units("mm")
    _save(image, output)


def _save(image: Any, output: Path) -> None:
    if output.name.endswith(".gz"):
        # No file name and no time in the gzip header: the same voxels give the same bytes.
        with (
            output.open("wb") as raw,
            gzip.GzipFile(filename="", fileobj=raw, mode="wb", compresslevel=5, mtime=0) as packed,
        ):
            packed.write(image.to_bytes())
    else:
        output.write_bytes(image.to_bytes())


def _open(path: Path) -> Any:
    try:
        image = nibabel.load(path)
    except _DAMAGE as error:
        raise UnreadableFileError(f"{path}: not a readable NIfTI file ({_one_line(error)})") from error
    if not isinstance(image, nibabel.Nifti1Image):
        raise UnreadableFileError(f"{path}: holds a {type(image).__name__}, expected NIfTI; convert it first")
    kind = image.get_data_dtype()
    if kind.fields is not None or np.issubdtype(kind, np.complexfloating):
        raise UnreadableFileError(
            f"{path}: voxels are {_kind_name(kind)}, expected one real number a voxel; convert it to separate channels"
        )
    return image


def _kind_name(kind: np.dtype[Any]) -> str:
    return f"colour ({''.join(kind.fields)})" if kind.fields else str(kind)


def _spatial(shape: tuple[int, ...]) -> tuple[int, int, int]:
    x, y, z = (*shape, 1, 1, 1)[:3]
    return x, y, z


def _n_channels(path: Path, shape: tuple[int, ...]) -> int:
    if 0 in shape or len(shape) < 2:
        raise UnreadableFileError(f"{path}: shape (x, y, z) is {shape}; expected two to four axes, none of them empty")
    if any(n != 1 for n in shape[4:]):
        raise UnreadableFileError(
            f"{path}: shape (x, y, z, t, ...) is {shape}, {len(shape)} axes; expected three, or four with the channels last"
        )
    return shape[3] if len(shape) > 3 else 1


def _grid(path: Path, image: Any) -> Grid:
    try:
        return Grid.from_affine(_spatial(image.shape)[::-1], _affine(image) @ _FLIP_INDEX)
    except ValueError as error:
        raise UnreadableFileError(f"{path}: {error}; repair the header's sform or qform") from error


def _affine(image: Any) -> NDArray[np.float64]:
    affine: NDArray[np.float64] = np.array(image.affine, dtype=np.float64)
    if _sizes_disagree(image):
        affine[:3, :3] *= _pixdim(image) / np.linalg.norm(affine[:3, :3], axis=0)
    return affine


def _pixdim(image: Any) -> NDArray[np.float64]:
    return np.abs(np.asarray(image.header["pixdim"][1:4], dtype=np.float64))


def _sizes_disagree(image: Any) -> bool:
    lengths, sizes = np.linalg.norm(image.affine[:3, :3], axis=0), _pixdim(image)
    usable = np.isfinite(sizes).all() and (sizes > 0).all() and np.isfinite(lengths).all() and (lengths > 0).all()
    return bool(image.header["sform_code"] > 0 and usable and (np.abs(lengths / sizes - 1) > SIZE_TOLERANCE).any())


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
