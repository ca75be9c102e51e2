"""DICOM as images: a folder that holds one image series, or a file that is a volume (enhanced, multi-frame).

Headers are read by pydicom (`dicom_files`, `dicom_frames`), files become series (`dicom_series`), slices a regular volume (`series`,
`volumes`), and pixels values (`dicom_pixels`).
"""

from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segpipe.core.geometry import Grid
from segpipe.core.regular import files_below
from segpipe.errors import IrregularSeriesError, UnreadableFileError
from segpipe.execution.memory import require_room_for
from segpipe.io.dicom_files import Damaged, DicomFile, OtherObject, image_type, kept_back, looks_like_dicom, open_file
from segpipe.io.dicom_pixels import forget_last_file, read_planes
from segpipe.io.dicom_series import Found, Series, files_of, find_series, series_volumes, stack_of
from segpipe.io.notes import Note, shear_notes
from segpipe.io.series import Stack

__all__ = [
    "Found", "Series", "files_behind", "find_series", "forget_last_file", "header_notes", "holds_dicom",
    "looks_like_dicom", "one_series", "read", "read_header", "read_voxels", "require_volume_file", "series_volumes", "stack_of",
    "volume_files",
]  # fmt: skip

_RADIOGRAPHS = {"CR", "DX", "MG", "RG", "PX", "IO", "XA", "RF"}


def holds_dicom(folder: Path, *, below: bool = True) -> bool:
    """Tell whether a folder, or (``below``) one below it, holds a DICOM file."""
    if not folder.is_dir():
        return False
    # Stops at the first: a folder may hold thousands.
    return any(f.is_file() and looks_like_dicom(f) for f in (files_below(folder) if below else folder.iterdir()))


def read_header(path: Path) -> tuple[Grid, int]:
    """Grid and number of channels, which is 1."""
    return _stack(path).grid, 1


def read(path: Path) -> tuple[NDArray[Any], Grid]:
    """Voxels (1, Z, Y, X) with slope and intercept applied, and their grid."""
    stack = _stack(path)
    voxels = read_voxels(stack)[None]
    forget_last_file()
    return voxels, stack.grid


def header_notes(path: Path) -> list[Note]:
    """What is odd about a series that is regular all the same."""
    stack = _stack(path)
    return [*stack.notes, *shear_notes(stack.grid)]


def read_voxels(stack: Stack) -> NDArray[Any]:
    """Voxels (Z, Y, X) with slope and intercept applied: int16 where every value is one, else float32.

    Raises
    ------
    NoRoomError
        If they would not fit into the free memory.
    """
    # Planes of int16, and the volume.
    require_room_for(stack.slices[0].file, 4 * prod(stack.grid.shape))
    planes = [_narrow(plane) for plane in read_planes(stack.slices)]
    fits = all(plane.dtype == np.int16 for plane in planes)
    voxels = np.empty(stack.grid.shape, dtype=np.int16 if fits else np.float32)
    for z, plane in enumerate(planes):
        voxels[z] = plane
    return voxels


def _narrow(plane: NDArray[Any]) -> NDArray[Any]:
    """As int16 where every value is one: 64-bit planes of a whole volume take four times the memory."""
    whole = np.issubdtype(plane.dtype, np.integer)
    if whole and int(plane.min()) >= -32768 and int(plane.max()) <= 32767:
        return plane.astype(np.int16)
    return plane.astype(np.float32)


def one_series(path: Path) -> Series:
    """Return the only image series of a folder, or of a file.

    Raises
    ------
    IrregularSeriesError
        If there is none, or several.
    """
    found = find_series(path)
    if len(found.series) == 1:
        return found.series[0]
    if not found.series and found.others:
        other = found.others[0]
        raise IrregularSeriesError(f"{other.path.name} is {other.what}, not an image{other.advice}")
    listed = "; ".join(s.title for s in found.series[:6])
    shared = next((n.message for s in found.series for n in s.notes if n.severity == "warning"), "")
    raise IrregularSeriesError(
        f"{len(found.series)} image series{': ' + listed if found.series else ''}{'; ' + shared if shared else ''}; "
        "expected one a folder: keep one, or let `segpipe convert` write each as a file"
    )


def files_behind(path: Path) -> list[Path]:
    """Files whose change changes the series."""
    return [f for f in files_of(path) if path.is_file() or looks_like_dicom(f)]


def volume_files(folder: Path) -> list[Path]:
    """Return the DICOM files directly in a folder where each is an image of its own with several frames.

    Nothing where one of them is a slice, or a part of another's series: then the folder is the image.
    """
    uids: dict[Path, str] = {}
    for file in sorted(
        f for f in folder.iterdir() if f.is_file() and not f.name.startswith(".") and looks_like_dicom(f)
    ):
        opened = open_file(file)
        if not isinstance(opened, DicomFile) or _n_frames(opened) < 2:
            return []
        uids[file] = str(opened.header.get("SeriesInstanceUID", ""))
    return list(uids) if len(set(uids.values())) == len(uids) else []


def _n_frames(file: DicomFile) -> int:
    try:
        with kept_back():
            return int(file.header.get("NumberOfFrames") or 1)
    except (ValueError, TypeError):
        return 1


def _stack(path: Path) -> Stack:
    return _cached_stack(path, tuple((f, f.stat().st_mtime_ns) for f in files_of(path)))


@lru_cache(maxsize=4)
def _cached_stack(path: Path, _files_and_times: tuple[tuple[Path, int], ...]) -> Stack:
    if path.is_file():
        require_volume_file(path)
    try:
        return stack_of(one_series(path))
    except IrregularSeriesError as error:
        raise IrregularSeriesError(f"{path}: {error}") from error


def require_volume_file(path: Path) -> None:
    """Refuse a file that is no volume by itself.

    Raises
    ------
    UnreadableFileError
        If it is damaged, no image, or one slice.
    """
    opened = open_file(path)
    if isinstance(opened, Damaged):
        raise UnreadableFileError(opened.problem)
    if isinstance(opened, OtherObject):
        raise UnreadableFileError(f"{path}: is {opened.what}, not an image{opened.advice}")
    header = opened.header
    if _n_frames(opened) > 1 or "PerFrameFunctionalGroupsSequence" in header:
        return
    if "MOSAIC" in image_type(header):
        raise UnreadableFileError(f"{path}: is a Siemens mosaic (ImageType): dcm2niix unpacks it to a volume")
    modality = str(header.get("Modality") or "")
    size = f"{modality or 'image'}, {header.get('Rows')} x {header.get('Columns')} pixels"
    if modality in _RADIOGRAPHS:
        raise UnreadableFileError(
            f"{path}: is a single two-dimensional DICOM picture ({size}), not a volume; two-dimensional images are read as PNG or TIFF"
        )
    raise UnreadableFileError(
        f"{path}: is one slice ({size}), not a volume; give the folder that holds the series, or a multi-frame file"
    )
