"""One door to image files: which reader takes which ending, and what they all return."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segpipe.errors import UnreadableFileError
from segpipe.geometry import Grid
from segpipe.io import itk, nifti
from segpipe.volume import Volume

NIFTI_ENDINGS = (".nii.gz", ".nii")
ITK_ENDINGS = (".nrrd", ".nhdr", ".mha", ".mhd")
IMAGE_ENDINGS = NIFTI_ENDINGS + ITK_ENDINGS


@dataclass(frozen=True)
class Header:
    """What a file says of itself before its voxels are read."""

    grid: Grid
    n_channels: int


def ending_of(path: Path) -> str | None:
    """Return the image ending of a path, or None when it is no image segpipe reads."""
    return next((e for e in IMAGE_ENDINGS if path.name.lower().endswith(e)), None)


def output_ending(path: Path) -> str:
    """Return the ending of a segmentation of this image: its own, or the one-file form where the voxels lie apart."""
    ending = ending_of(path) or ""
    return {".mhd": ".mha", ".nhdr": ".nrrd"}.get(ending, ending)


def stem_of(path: Path) -> str:
    """Return the file name without its image ending."""
    ending = ending_of(path)
    return path.name[: -len(ending)] if ending else path.stem


def read_header(path: Path) -> Header:
    """Read a file's grid and number of channels without its voxels.

    Raises
    ------
    UnreadableFileError
        If the file is missing, empty, no image, or has a layout that is not supported.
    """
    grid, n_channels = _reader(path).read_header(path)
    return Header(grid, n_channels)


def read_volume(path: Path) -> Volume:
    """Read a file as an array (C, Z, Y, X) in the file's own number type, and its grid.

    Raises
    ------
    UnreadableFileError
        If the file is missing, truncated, no image, or has a layout that is not supported.
    """
    array, grid = _reader(path).read(path)
    return Volume(array, grid)


def header_notes(path: Path) -> list[str]:
    """What is odd about a readable file's header, and what was believed (docs/conventions.md)."""
    return nifti.header_notes(path) if ending_of(path) in NIFTI_ENDINGS else []


def smallest_label_dtype(largest: int) -> np.dtype[Any]:
    """Return the smallest of uint8, uint16 and uint32 that holds the largest label value."""
    return np.dtype(np.uint8 if largest <= 255 else np.uint16 if largest <= 65535 else np.uint32)


def write_labels_like(source: Path, output: Path, labels: NDArray[Any]) -> None:
    """Write a label array (Z, Y, X) with the header of ``source``; the file appears whole or not at all.

    The number type is that of ``labels``; both files must have the same kind of ending.
    """
    if ending_of(source) in NIFTI_ENDINGS and ending_of(output) in NIFTI_ENDINGS:
        write = nifti.write_labels_like
    elif ending_of(source) in ITK_ENDINGS and ending_of(output) in ITK_ENDINGS:
        write = itk.write_labels_like
    else:
        raise UnreadableFileError(
            f"{output}: cannot carry the header of {source.name}; use its ending, {ending_of(source)}"
        )
    _replace_when_whole(output, lambda partial: write(source, partial, labels))


def write_volume(path: Path, array: NDArray[Any], grid: Grid) -> None:
    """Write an array (Z, Y, X) on a grid as a new file; the file appears whole or not at all."""
    write = nifti.write if ending_of(path) in NIFTI_ENDINGS else itk.write
    _replace_when_whole(path, lambda partial: write(partial, array, grid))


def _replace_when_whole(output: Path, write: Any) -> None:
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_name(f".{os.getpid()}.partial.{output.name}")
    try:
        write(partial)
        partial.replace(output)
    finally:
        partial.unlink(missing_ok=True)


def _reader(path: Path) -> Any:
    ending = ending_of(path)
    if ending is None:
        raise UnreadableFileError(f"{path}: ending is not one of {', '.join(IMAGE_ENDINGS)}")
    if not path.is_file():
        raise UnreadableFileError(f"{path}: no such file")
    if path.stat().st_size == 0:
        raise UnreadableFileError(f"{path}: the file is empty (0 bytes); copy it again from its source")
    return nifti if ending in NIFTI_ENDINGS else itk
