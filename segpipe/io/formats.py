"""One door to image files: which reader takes which ending, and what they all return."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from hashlib import sha256
from importlib import import_module
from math import prod
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from segpipe.core.geometry import Grid
from segpipe.core.regular import files_below, lies, open_regular, special
from segpipe.core.volume import Volume
from segpipe.core.whole import said_by_system, whole
from segpipe.errors import SegpipeError, UnreadableFileError
from segpipe.execution.limits import time_limit
from segpipe.io.notes import Note

logger = logging.getLogger(__name__)

LEAST_LIMIT_S = 180.0
SLOWEST_BYTES_PER_S = 250_000
"""A file may take three minutes, and a second more for each of these: slow network drives are ten times as fast."""

# Module of each ending. Modules are imported when a file needs them: a worker that reads NIfTI does not wait for the others.
_READERS = {
    **dict.fromkeys((".seg.nii.gz", ".seg.nii", ".nii.gz", ".nii", ".hdr", ".hdr.gz"), "nifti"),
    **dict.fromkeys((".mgz", ".mgh"), "freesurfer"),
    **dict.fromkeys((".seg.nrrd", ".nrrd", ".nhdr", ".mha", ".mhd"), "itk"),
    **dict.fromkeys((".png", ".jpg", ".jpeg", ".bmp", ".ome.tif", ".ome.tiff", ".tif", ".tiff"), "image2d"),
    **dict.fromkeys((".dcm", ".ima"), "dicom"),
}
IMAGE_ENDINGS = tuple(_READERS)
_WRITTEN_AS = {
    **dict.fromkeys((".hdr", ".hdr.gz", ".mgz", ".mgh", ".seg.nii.gz", ".dcm", ".ima", ""), ".nii.gz"),
    **dict.fromkeys((".jpg", ".jpeg", ".bmp"), ".png"),
    ".seg.nii": ".nii",
    ".seg.nrrd": ".nrrd",
    ".nhdr": ".nrrd",
    ".mhd": ".mha",
}
"""Endings of segmentations of images whose own ending is none for a segmentation."""
_NOT_WRITTEN = (".hdr", ".hdr.gz", ".mgz", ".mgh", ".dcm", ".ima")
"""Endings that are read only."""
_LIES_IN_PARTS = {
    **dict.fromkeys((".mhd", ".nhdr"), "itk"),
    ".hdr": "nifti",
    **dict.fromkeys((".tif", ".tiff", ".ome.tif", ".ome.tiff"), "image2d"),
}
"""Readers that know which other files belong to one of such an ending."""


@dataclass(frozen=True)
class Header:
    """What a file says of itself before its voxels are read."""

    grid: Grid
    n_channels: int


def ending_of(path: Path) -> str | None:
    """Return the image ending of a path, or None when it is no image segpipe reads."""
    return next((e for e in IMAGE_ENDINGS if path.name.lower().endswith(e)), None)


def output_ending(path: Path) -> str:
    """Return the ending of a segmentation of this image: its own, that of one file where voxels lie apart, or one that holds a mask."""
    ending = ending_of(path) or ""
    return _WRITTEN_AS.get(ending, ending)


def stem_of(path: Path) -> str:
    """Return the file name without its image ending; a folder's whole name."""
    ending = ending_of(path)
    return path.name[: -len(ending)] if ending else path.name


def read_header(path: Path) -> Header:
    """Read a file's grid and number of channels without its voxels.

    Raises
    ------
    UnreadableFileError
        If the file is missing, empty, no image, or has a layout that is not supported.
    """
    reader = _reader_of(path)
    with reading(path):
        grid, n_channels = reader.read_header(path)
    return Header(grid, n_channels)


def read_volume(path: Path) -> Volume:
    """Read a file as an array (C, Z, Y, X) in the file's own number type, and its grid.

    Raises
    ------
    UnreadableFileError
        If the file is missing, truncated, no image, or has a layout that is not supported.
    """
    reader = _reader_of(path)
    with reading(path):
        array, grid = reader.read(path)
    return Volume(array, grid)


def read_as_nnunet(path: Path) -> Volume:
    """Read a file as :func:`read_volume`, on the grid on which nnU-Net sees it: its TIFF reader passes over the file's own voxel size."""
    volume = read_volume(path)
    return Volume(volume.array, _module("image2d").grid_for_nnunet(path, volume.grid)) if is_picture(path) else volume


def read_label_volume(path: Path, accepted: tuple[int, ...] | None = None) -> Volume:
    """Read a label file as an array (C, Z, Y, X) of its values, and its grid.

    Parameters
    ----------
    path : Path
    accepted : tuple of int, optional
        Declared values; they decide where a picture can be read in two ways (docs/conventions.md).

    Raises
    ------
    UnreadableFileError
        As for :func:`read_volume`, and if the file's compression changes values (JPEG).
    """
    reader = _reader_of(path)
    with reading(path):
        array, grid = reader.read_labels(path, accepted) if is_picture(path) else reader.read(path)
    return Volume(array, grid)


def header_notes(path: Path) -> list[Note]:
    """What is odd about a readable file's header, and what was believed (docs/conventions.md). It never raises for a file."""
    try:
        reader = _reader_of(path)
        with reading(path):
            notes: list[Note] = reader.header_notes(path)
    except UnreadableFileError as error:
        return [Note("warning", f"what is odd about the header could not be found out ({error})")]
    return notes


def header_warnings(images: Sequence[Path]) -> tuple[str, ...]:
    """Return what is worth a warning about the headers of a case's images, with the file's name where there are several."""
    return tuple(
        f"{path.name}: {note.message}" if len(images) > 1 else note.message
        for path in images
        for note in header_notes(path)
        if note.severity == "warning"
    )


def number_step(path: Path) -> float:
    """Return the distance of neighbouring values that a file can hold, where its header scales integers; else 0."""
    return float(_module("nifti").number_step(path)) if _reader_name(path) == "nifti" else 0.0


def segment_keys(path: Path) -> dict[str, str]:
    """Return the names and values by which 3D Slicer describes segments; empty for every other file."""
    keys: dict[str, str] = _module("itk").segment_keys(path) if _reader_name(path) == "itk" else {}
    return keys


def is_image(path: Path) -> bool:
    """Tell whether a path is something to read: a file with an image's ending, or a folder of DICOM files."""
    if path.is_dir():
        return holds_dicom(path)
    return path.is_file() and ending_of(path) is not None


def is_segmentation(path: Path) -> bool:
    """Tell by a file's name whether it is a segmentation as 3D Slicer saves one beside its image."""
    return (ending_of(path) or "").startswith(".seg.")


def is_picture(path: Path) -> bool:
    """Tell whether a file is a picture (PNG, JPEG, BMP, TIFF), whose rows run from top to bottom."""
    return _reader_name(path) == "image2d"


def is_dicom(file: Path) -> bool:
    """Tell whether a file has the ending of a DICOM file."""
    return _READERS.get(ending_of(file) or "") == "dicom"


def dicom_volumes(folder: Path) -> list[Path]:
    """Return the DICOM files directly in a folder where each is a volume of its own; nothing where the folder is one image."""
    files: list[Path] = _module("dicom").volume_files(folder)
    return files


def holds_dicom(folder: Path, *, below: bool = True) -> bool:
    """Tell whether a folder, or one below it, holds a DICOM file."""
    found: bool = _module("dicom").holds_dicom(folder, below=below)
    return found


def files_behind(path: Path) -> list[Path]:
    """Files whose content an image is made of: itself, or those of a DICOM folder."""
    if path.is_dir():
        files: list[Path] = _module("dicom").files_behind(path)
        return files
    reader = _LIES_IN_PARTS.get((ending_of(path) or "").removesuffix(".gz"))
    return [path] if reader is None else _module(reader).files_behind(path)


def content_of(images: Sequence[Path]) -> str:
    """Return the sha256 of the files that images are made of, in their order.

    Raises
    ------
    UnreadableFileError
        If one of them cannot be read.
    """
    hashed = sha256()
    for image in images:
        try:
            for file in files_behind(image):
                with open_regular(file) as opened:
                    while block := opened.read(1 << 20):
                        hashed.update(block)
        except OSError as error:
            raise _refused(image, error) from error
    return hashed.hexdigest()


def most_voxels(files: Iterable[Path]) -> int:
    """Return the voxels of the largest file, by the headers that can be read; at least 1."""
    largest = 1
    for file in files:
        with suppress(UnreadableFileError):
            largest = max(largest, prod(read_header(file).grid.shape))
    return largest


def write_labels_like(source: Path, output: Path, labels: NDArray[Any]) -> None:
    """Write an array (Z, Y, X) with the header of ``source``; the file appears whole or not at all.

    The number type is that of ``labels``; both files must have the same kind of ending. Labels of a DICOM folder or of a FreeSurfer
    file are written as NIfTI on the image's grid.
    """
    with labels_written_like(source, output, labels):
        pass


@contextmanager
def labels_written_like(source: Path, output: Path, labels: NDArray[Any]) -> Iterator[Path]:
    """Write as :func:`write_labels_like` does, but to a hidden file, which is given and takes its place when the block ends.

    Where the block raises, what lies at the place stays.
    """
    kind = _reader_name(source)
    if source.is_dir() or kind == "dicom" or (kind is None and _module("dicom").looks_like_dicom(source)):
        with volume_written(output, labels, read_header(source).grid) as partial:
            yield partial
        return
    if kind == "freesurfer" and _reader_name(output) == "nifti":
        with volume_written(output, labels, read_header(source).grid) as partial:
            yield partial
        return
    if kind is None or kind != _reader_name(output) or not _is_written(output):
        raise UnreadableFileError(
            f"{output}: cannot carry the header of {source.name}; use the ending {output_ending(source)}"
        )
    with whole(output) as partial:
        _module(kind).write_labels_like(source, partial, labels)
        yield partial
    if kind == "image2d":
        _module(kind).write_beside(source, output)


def write_map_like(source: Path, output: Path, array: NDArray[Any]) -> None:
    """Write an array (Z, Y, X) on the grid of ``source``: with its header where both are of one kind of format, else as a new file."""
    with map_written_like(source, output, array):
        pass


@contextmanager
def map_written_like(source: Path, output: Path, array: NDArray[Any]) -> Iterator[Path]:
    """Write as :func:`write_map_like` does, but to a hidden file, which is given and takes its place when the block ends."""
    alike = not source.is_dir() and _reader_name(source) == _reader_name(output)
    with (
        labels_written_like(source, output, array)
        if alike
        else volume_written(output, array, read_header(source).grid) as partial
    ):
        yield partial


def write_volume(path: Path, array: NDArray[Any], grid: Grid) -> None:
    """Write an array (Z, Y, X) on a grid as a new file; the file appears whole or not at all."""
    with volume_written(path, array, grid):
        pass


@contextmanager
def volume_written(path: Path, array: NDArray[Any], grid: Grid) -> Iterator[Path]:
    """Write as :func:`write_volume` does, but to a hidden file, which is given and takes its place when the block ends."""
    kind = _reader_name(path)
    if kind == "dicom":
        raise UnreadableFileError(f"{path}: DICOM is not written; use the ending .nii.gz")
    if kind is None or not _is_written(path):
        written = ", ".join(ending for ending in IMAGE_ENDINGS if ending not in _NOT_WRITTEN)
        raise UnreadableFileError(f"{path}: cannot be written: its ending is not one of {written}")
    with whole(path) as partial:
        _module(kind).write(partial, array, grid)
        yield partial


def _reader_name(path: Path) -> str | None:
    return _READERS.get(ending_of(path) or "")


def _is_written(path: Path) -> bool:
    return ending_of(path) not in _NOT_WRITTEN


def reading_limit_s(files: Iterable[Path]) -> float:
    """Longest time that reading an image may take, by the size of its files."""
    return LEAST_LIMIT_S + sum(f.stat().st_size for f in files) / SLOWEST_BYTES_PER_S


def _all_files(path: Path) -> Iterable[Path]:
    return (f for f in files_below(path) if f.is_file()) if path.is_dir() else files_behind(path)


@contextmanager
def reading(path: Path, files: Iterable[Path] | None = None) -> Iterator[None]:
    """Make everything that goes wrong while an image is read that image's failure, also when it takes too long.

    Parameters
    ----------
    path : Path
        The image, for messages.
    files : iterable of Path, optional
        Files that are read; all that the image is made of unless given.
    """
    try:
        seconds = reading_limit_s(_all_files(path) if files is None else files)
        too_long = f"{path}: reading took over {seconds:.0f} s, expected less for its size: copy it to a local drive, or save it again"
        with time_limit(seconds, lambda: UnreadableFileError(too_long)):
            yield
    except (SegpipeError, MemoryError):
        raise
    except OSError as error:
        raise _refused(path, error) from error
    except Exception as error:
        logger.debug("%s", path, exc_info=True)
        raise UnreadableFileError(
            f"{path}: cannot be read ({type(error).__name__}: {error}); save it again from its source, or as NIfTI"
        ) from error


def _refused(path: Path, error: OSError) -> UnreadableFileError:
    """What the system refuses, as the failure of an image."""
    return UnreadableFileError(
        f"{path}: cannot be read ({said_by_system(error)}); ask for the right to read it, or copy it again"
    )


def _reader_of(path: Path) -> Any:
    try:
        return _reader_by_content(path)
    except OSError as error:
        raise _refused(path, error) from error


def _reader_by_content(path: Path) -> Any:
    if path.is_dir():
        return _module("dicom")
    if why := special(path):
        raise UnreadableFileError(why)
    ending = ending_of(path)
    if ending is None and path.is_file() and _module("dicom").looks_like_dicom(path):
        return _module("dicom")
    if ending is None and path.is_file() and (archive := archive_of(path)):
        raise UnreadableFileError(f"{path}: is {archive}")
    if ending is None and path.name.lower().endswith((".img", ".img.gz")):
        raise UnreadableFileError(f"{path}: holds the voxels of a pair of files; give the one that ends in .hdr")
    if ending is None:
        raise UnreadableFileError(
            f"{path}: ending is not one of {', '.join(IMAGE_ENDINGS)}, nor is it a folder of DICOM files"
        )
    if not lies(path):
        raise UnreadableFileError(f"{path}: no such file")
    if path.stat().st_size == 0:
        raise UnreadableFileError(f"{path}: the file is empty (0 bytes); copy it again from its source")
    return _module(_READERS[ending])


def archive_of(path: Path) -> str | None:
    """Say what to do with a file that holds or lists images; None for any other."""
    if path.name.upper() == "DICOMDIR":
        return "the list of a DICOM medium; give the folder in which it lies"
    with open_regular(path) as stream:
        is_zip = stream.read(4) == b"PK\x03\x04"
    return "a zip archive; unpack it and give the folder" if is_zip else None


def _module(name: str) -> Any:
    return import_module(f"segpipe.io.{name}")
