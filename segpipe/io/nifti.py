"""NIfTI-1 and NIfTI-2 by nibabel, which opens the sheared and not quite orthonormal directions that ITK refuses.

Which part of a header is believed, and what is said of the rest, is written in docs/conventions.md.
"""

import gzip
import zlib
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.openers import ImageOpener
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError
from numpy.typing import NDArray

from segpipe.core.geometry import Floats, Grid, largest_displacement_mm, same_grid
from segpipe.errors import UnreadableFileError
from segpipe.io.notes import Note, shear_notes

_DAMAGE = (OSError, EOFError, zlib.error, ImageFileError, HeaderDataError, WrapStructError, ValueError)
SIZE_TOLERANCE = 1e-3
"""Relative difference of voxel sizes from which a header contradicts itself."""

_FLIP_INDEX = np.array([[0, 0, 1, 0], [0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1]], dtype=np.float64)
_MM = {"meter": 1000.0, "micron": 0.001}
"""Millimetres in the units a header may state instead of millimetres."""


def read_header(path: Path) -> tuple[Grid, int]:
    """Grid and number of channels."""
    image = _open(path)
    return _grid(path, image), _n_channels(path, image.shape)


def read(path: Path) -> tuple[NDArray[Any], Grid]:
    """Voxels (C, Z, Y, X) with the header's scaling applied (as float32 where there is one), and their grid."""
    image = _open(path)
    grid, n_channels = _grid(path, image), _n_channels(path, image.shape)
    try:
        voxels = _scaled(image.dataobj)
    except _DAMAGE as error:
        raise UnreadableFileError(
            f"{path}: the voxels cannot be read, the file is truncated or damaged ({_one_line(error)}); copy it again from its source"
        ) from error
    voxels = voxels.reshape((*_spatial(image.shape), n_channels), order="F")
    return np.ascontiguousarray(voxels.transpose(3, 2, 1, 0)), grid


def header_notes(path: Path) -> list[Note]:
    """What is odd about a readable file's header, and what was believed."""
    image = _open(path)
    notes: list[Note] = []
    lengths, sizes = _by(_lengths(image)), _raw_pixdim(path, image)
    if _has_form(image) and not ((sizes > 0) & np.isfinite(sizes)).all():
        notes.append(
            Note("warning", f"pixdim says voxels of {_by(sizes)} mm (x, y, z); the affine's {lengths} mm are believed")
        )
    elif _sizes_disagree(path, image):
        notes.append(
            Note("note", f"the sform says voxels of {lengths} mm (x, y, z), pixdim {_by(sizes)} mm; pixdim is believed")
        )
    if image.header["sform_code"] > 0 and image.header["qform_code"] > 0:
        believed = _grid(path, image)
        qform = image.get_qform()
        qform[:3] *= _MM.get(_unit(image), 1.0)
        other = Grid.from_affine(believed.shape, qform @ _FLIP_INDEX)
        if not same_grid(believed, other):
            apart = largest_displacement_mm(believed, other)
            notes.append(
                Note("warning", f"sform and qform put the same voxel up to {apart:.3g} mm apart; the sform is believed")
            )
    if not _has_form(image):
        notes.append(
            Note("note", "neither sform nor qform: where left and right are is unknown; x is taken to run to the left")
        )
    unit = _unit(image)
    if unit in _MM:
        notes.append(Note("note", f"sizes are stated in {unit}s; they are multiplied by {_MM[unit]:g} to millimetres"))
    elif unit != "mm":
        notes.append(Note("note", "the unit of the voxel sizes is not stated; millimetres are assumed"))
    return notes + shear_notes(_grid(path, image))


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
    sizes = _raw_pixdim(path, image)
    if not _has_form(image) and not ((sizes > 0) & np.isfinite(sizes)).all():
        raise UnreadableFileError(
            f"{path}: pixdim says voxels of {_by(sizes)} mm (x, y, z), and neither sform nor qform says otherwise; "
            "expected positive sizes: set them in the header"
        )
    try:
        return Grid.from_affine(_spatial(image.shape)[::-1], _affine(path, image) @ _FLIP_INDEX)
    except ValueError as error:
        raise UnreadableFileError(f"{path}: {error}; repair the header's sform or qform") from error


def _affine(path: Path, image: Any) -> Floats:
    affine: Floats = np.array(image.affine, dtype=np.float64)
    if _sizes_disagree(path, image):
        affine[:3, :3] *= _raw_pixdim(path, image) / _lengths(image)
    affine[:3] *= _MM.get(_unit(image), 1.0)
    return affine


def _has_form(image: Any) -> bool:
    return bool(image.header["sform_code"] > 0 or image.header["qform_code"] > 0)


def _unit(image: Any) -> str:
    try:
        return str(image.header.get_xyzt_units()[0])
    except KeyError:
        return "unknown"


def _lengths(image: Any) -> Floats:
    lengths: Floats = np.linalg.norm(image.affine[:3, :3], axis=0)
    return lengths


def _raw_pixdim(path: Path, image: Any) -> Floats:
    """Voxel sizes as they are in the file: nibabel's reader makes negative ones positive and zeros ones."""
    with ImageOpener(str(path)) as file:
        header = type(image.header).from_fileobj(file, check=False)
    sizes = np.asarray(header["pixdim"][1:4], dtype=np.float64)
    # An axis that a two-dimensional file does not have needs no size of its own.
    sizes[len(image.shape) :] = _lengths(image)[len(image.shape) :]
    return sizes


def _sizes_disagree(path: Path, image: Any) -> bool:
    """Whether the sform and a usable pixdim give other voxel sizes."""
    lengths, sizes = _lengths(image), _raw_pixdim(path, image)
    usable = bool((np.isfinite(sizes) & (sizes > 0) & np.isfinite(lengths) & (lengths > 0)).all())
    return usable and bool(image.header["sform_code"] > 0 and (np.abs(lengths / sizes - 1) > SIZE_TOLERANCE).any())


def _scaled(data: Any) -> NDArray[Any]:
    """Voxels with slope and intercept, which nibabel alone would apply in float64."""
    voxels: NDArray[Any] = data.get_unscaled()
    if (data.slope, data.inter) == (1, 0):
        return voxels
    scaled = voxels.astype(np.float32)
    scaled *= np.float32(data.slope)
    scaled += np.float32(data.inter)
    return scaled


def _by(values: Floats) -> str:
    return " x ".join(f"{v:.4g}" for v in values)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
