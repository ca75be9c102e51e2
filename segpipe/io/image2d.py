"""PNG and TIFF images: one slice, in pixels of 1 mm, for a pixel's size in millimetres is not in the file.

Resolution tags (dots per inch) say how large an image is to be printed; they are passed over.
"""

from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk  # noqa: N813 - the library's own short name
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from segpipe.core.geometry import Grid
from segpipe.errors import UnreadableFileError
from segpipe.io.itk import one_line, open_header
from segpipe.io.notes import Note

_OPAQUE = {np.dtype(np.uint8): 255, np.dtype(np.uint16): 65535}


def read_header(path: Path) -> tuple[Grid, int]:
    """Grid and number of channels."""
    header = _open(path)
    if _has_colour_table(path):
        return grid_of(header.GetSize()), 1
    n = int(header.GetNumberOfComponents())
    # A transparency channel is not one of the image's.
    return grid_of(header.GetSize()), {2: 1, 4: 3}.get(n, n)


def read(path: Path) -> tuple[NDArray[Any], Grid]:
    """Pixels (C, 1, Y, X), and their grid. A colour table is not applied: its indices are the values.

    Grey values of 2 and 4 bits are as they are in the file; the decoder spreads them over 8 bits.
    """
    header = _open(path)
    grid = grid_of(header.GetSize())
    try:
        pixels = _indices(path) if _has_colour_table(path) else sitk.GetArrayFromImage(header.Execute())
    except (RuntimeError, OSError, SyntaxError) as error:
        raise UnreadableFileError(
            f"{path}: the pixels cannot be read, the file is truncated or damaged ({one_line(error)}); copy it again from its source"
        ) from error
    pixels = pixels.reshape((*grid.shape[1:], -1)) // _spread(path)
    if pixels.shape[-1] in (2, 4):
        if (pixels[..., -1] != _OPAQUE.get(pixels.dtype, pixels[..., -1].max())).any():
            raise UnreadableFileError(f"{path}: parts of the image are transparent; save it without transparency")
        pixels = pixels[..., :-1]
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)[:, None]), grid


def header_notes(path: Path) -> list[Note]:
    """What is odd about a readable file, and what was believed."""
    if not _has_colour_table(path):
        return []
    return [Note("note", "the file has a colour table: the indices into it are taken as values, not the colours")]


def write_labels_like(source: Path, output: Path, labels: NDArray[Any]) -> None:
    """Write labels (1, Y, X) as a grey image."""
    if labels.dtype.itemsize > 2:
        raise UnreadableFileError(
            f"{output}: label values over 65535 do not fit into a {output.suffix} file; give the images as NIfTI"
        )
    sitk.WriteImage(sitk.GetImageFromArray(labels[0]), str(output), useCompression=True)


def write(output: Path, array: NDArray[Any], grid: Grid) -> None:
    """Write one slice (1, Y, X) of 8 or 16 bit."""
    sitk.WriteImage(sitk.GetImageFromArray(array[0]), str(output), useCompression=True)


def grid_of(size: tuple[int, ...]) -> Grid:
    """Grid of an image of (x, y) pixels: 1 mm each, rows from top to bottom."""
    affine = np.eye(4)
    affine[:3, :3] = np.eye(3)[:, ::-1]
    return Grid.from_affine((1, int(size[1]), int(size[0])), affine)


def _open(path: Path) -> Any:
    reader = open_header(path)
    size = reader.GetSize()
    if any(n != 1 for n in size[2:]):
        raise UnreadableFileError(
            f"{path}: holds {size[2]} pages; expected one: the distance of slices is not in such a file, "
            "convert it to NIfTI with its voxel sizes"
        )
    return reader


def _spread(path: Path) -> int:
    """Factor by which the decoder multiplied grey values of less than 8 bits; 1 for all others."""
    if path.suffix.lower() != ".png":
        return 1
    with path.open("rb") as file:
        bits, colour = file.read(26)[24:26]
    return 255 // (2**bits - 1) if colour == 0 and bits in (2, 4) else 1


def _has_colour_table(path: Path) -> bool:
    try:
        with Image.open(path) as image:
            return image.mode == "P"
    except (UnidentifiedImageError, OSError, ValueError):
        return False


def _indices(path: Path) -> NDArray[Any]:
    with Image.open(path) as image:
        return np.asarray(image)
