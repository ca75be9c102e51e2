"""Pictures: PNG, JPEG, BMP and TIFF. A picture of one page has pixels of 1 mm, for a pixel's size in millimetres is not in such files.

Resolution tags (dots per inch) say how large an image is to be printed; they are passed over. A TIFF stack of several pages is a
volume with its voxel size. The content of a file, not its ending, decides how it is read.
"""

from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from segpipe.core.geometry import Grid
from segpipe.core.regular import open_regular
from segpipe.errors import UnreadableFileError
from segpipe.io import raster, tiff, tiff_write
from segpipe.io.notes import Note
from segpipe.io.tiff_spacing import spacing_beside, spacing_file

_TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_N_COLOURS = 3
_TIFF_ENDINGS = (".tif", ".tiff")


def read_header(path: Path) -> tuple[Grid, int]:
    """Grid and number of channels."""
    header: tuple[Grid, int] = _reader_of(path).read_header(path)
    return header


def read(path: Path) -> tuple[NDArray[Any], Grid]:
    """Voxels of an image (C, Z, Y, X), and their grid."""
    image: tuple[NDArray[Any], Grid] = _reader_of(path).read(path)
    return image


def read_labels(path: Path, accepted: tuple[int, ...] | None) -> tuple[NDArray[Any], Grid]:
    """Label values (C, Z, Y, X), and their grid; declared values decide between two readings of few bits or of a palette.

    A grey mask that was saved in colour, its channels all equal, has one channel.
    """
    labels, grid = _reader_of(path).read_labels(path, accepted)
    is_grey = len(labels) == _N_COLOURS and bool((labels == labels[:1]).all())
    return labels[:1] if is_grey else labels, grid


def header_notes(path: Path) -> list[Note]:
    """What is odd about a readable file, and what was believed."""
    notes: list[Note] = _reader_of(path).header_notes(path)
    return notes


def grid_for_nnunet(path: Path, grid: Grid) -> Grid:
    """Return the grid on which nnU-Net's readers see a picture: the voxel size of a stack is that of the json beside it, else 1 mm."""
    return grid if grid.shape[0] == 1 else Grid.of_spacing(grid.shape, spacing_beside(path))


def files_behind(path: Path) -> list[Path]:
    """The file, and the json beside a TIFF file that states its voxel size."""
    beside = spacing_file(path) if path.suffix.lower() in _TIFF_ENDINGS else None
    return [path] if beside is None else [path, beside]


def write_labels_like(source: Path, output: Path, labels: NDArray[Any]) -> None:
    """Write labels (Z, Y, X) as grey PNG or TIFF, with the orientation tag and the voxel size of the image."""
    from_tiff = is_tiff(source)
    if output.suffix.lower() in _TIFF_ENDINGS:
        if len(labels) > 1 and from_tiff:
            tiff_write.write_stack_like(output, labels, source)
        else:
            tiff_write.write_picture(
                output, labels[0], *((source,) if from_tiff else (None, raster.orientation_of(source)))
            )
        return
    _require_png(output, labels)
    raster.write_png(output, labels[0], (tiff_write if from_tiff else raster).orientation_of(source))


def write_beside(source: Path, output: Path) -> None:
    """Write the json with the voxel size beside a mask of a TIFF stack that has one."""
    if output.suffix.lower() in _TIFF_ENDINGS and is_tiff(source) and read_header(source)[0].shape[0] > 1:
        tiff_write.write_spacing_like(source, output)


def write(output: Path, array: NDArray[Any], grid: Grid) -> None:
    """Write slices (Z, Y, X): one as PNG or TIFF, several as TIFF with their voxel size."""
    if output.suffix.lower() not in _TIFF_ENDINGS:
        _require_png(output, array)
        raster.write_png(output, array[0], None)
    elif len(array) > 1:
        tiff_write.write_stack(output, array, grid.spacing_mm)
    else:
        tiff_write.write_picture(output, array[0], None)


def is_tiff(path: Path) -> bool:
    """Tell whether a file is a TIFF, by its first bytes."""
    with open_regular(path) as file:
        return file.read(4) in _TIFF_STARTS


def _require_png(output: Path, array: NDArray[Any]) -> None:
    if output.suffix.lower() != ".png":
        raise UnreadableFileError(
            f"{output}: a mask is written as PNG or TIFF, not as {output.suffix}; end its name in .png"
        )
    if len(array) > 1:
        raise UnreadableFileError(f"{output}: {len(array)} slices do not fit into a PNG; end its name in .tif")
    if array.dtype.itemsize > 2:
        raise UnreadableFileError(
            f"{output}: label values over 65535 do not fit into a PNG; give the images as TIFF or NIfTI"
        )


def _reader_of(path: Path) -> Any:
    return tiff if is_tiff(path) else raster
