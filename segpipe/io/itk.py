"""NRRD, MetaImage and other ITK formats by SimpleITK. ITK's world is LPS; segpipe's is RAS."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk  # noqa: N813 - the library's own short name
from numpy.typing import NDArray

from segpipe.core.geometry import Floats, Grid
from segpipe.errors import UnreadableFileError
from segpipe.io.notes import Note, shear_notes

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0])


def read_header(path: Path) -> tuple[Grid, int]:
    """Grid and number of channels."""
    header = open_header(path)
    return _grid(path, header), _n_channels(path, header)


def read(path: Path) -> tuple[NDArray[Any], Grid]:
    """Voxels (C, Z, Y, X), and their grid."""
    header = open_header(path)
    grid, n_channels = _grid(path, header), _n_channels(path, header)
    try:
        image = header.Execute()
    except RuntimeError as error:
        raise UnreadableFileError(
            f"{path}: the voxels cannot be read, the file is truncated or damaged ({one_line(error)}); copy it again from its source"
        ) from error
    voxels = sitk.GetArrayFromImage(image)
    if image.GetNumberOfComponentsPerPixel() > 1:
        voxels = np.moveaxis(voxels, -1, 0)
    return np.ascontiguousarray(voxels.reshape((n_channels, *grid.shape))), grid


def header_notes(path: Path) -> list[Note]:
    """What is odd about a readable file's header, and what was believed."""
    header = open_header(path)
    notes = []
    if "NRRD_space" not in header.GetMetaDataKeys() and path.suffix.lower() in (".nrrd", ".nhdr"):
        notes.append(
            Note(
                "note",
                "no 'space' is stated: where left and right are is unknown; axes are taken as left, posterior, superior",
            )
        )
    return notes + shear_notes(_grid(path, header))


def write_labels_like(source: Path, output: Path, labels: NDArray[Any]) -> None:
    """Write labels (Z, Y, X) with the source's origin, spacing, direction and metadata."""
    header = open_header(source)
    dims = header.GetDimension()
    array = labels[0] if dims == 2 else labels
    image = sitk.GetImageFromArray(array)
    kept = min(dims, 3)
    direction = np.asarray(header.GetDirection()).reshape(dims, dims)[:kept, :kept]
    image.SetSpacing([float(s) for s in header.GetSpacing()[:kept]])
    image.SetOrigin([float(o) for o in header.GetOrigin()[:kept]])
    image.SetDirection([float(d) for d in direction.ravel()])
    for key in header.GetMetaDataKeys():
        # Keys that ITK derives from the image itself would contradict it.
        if not key.startswith(("NRRD_", "ITK_")):
            image.SetMetaData(key, header.GetMetaData(key))
    sitk.WriteImage(image, str(output), useCompression=True)


def write(output: Path, array: NDArray[Any], grid: Grid) -> None:
    """Write an array (Z, Y, X) on a grid."""
    image = sitk.GetImageFromArray(array)
    direction = _LPS_TO_RAS @ np.asarray(grid.direction)[:, ::-1]
    image.SetSpacing([float(s) for s in grid.spacing_mm[::-1]])
    image.SetOrigin([float(o) for o in _LPS_TO_RAS @ np.asarray(grid.origin_mm)])
    image.SetDirection([float(d) for d in direction.ravel()])
    sitk.WriteImage(image, str(output), useCompression=True)


def files_behind(path: Path) -> list[Path]:
    """The file, and the one that holds its voxels where a header (.mhd, .nhdr) names one."""
    if path.suffix.lower() not in (".mhd", ".nhdr"):
        return [path]
    text = path.read_bytes()[:65536].decode("latin-1")
    named = re.search(r"^(?:ElementDataFile\s*=|data ?file:)\s*(\S.*?)\s*$", text, re.MULTILINE | re.IGNORECASE)
    voxels = path.parent / named[1] if named else path
    return [path, voxels] if voxels != path and voxels.is_file() else [path]


def open_header(path: Path) -> Any:
    """Open a file for reading by SimpleITK, its header read.

    Raises
    ------
    UnreadableFileError
        If it is no image of real numbers.
    """
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise UnreadableFileError(f"{path}: not a readable image ({one_line(error)})") from error
    if "complex" in sitk.GetPixelIDValueAsString(reader.GetPixelID()):
        raise UnreadableFileError(f"{path}: voxels are complex numbers, expected real ones; save magnitude first")
    return reader


def _n_channels(path: Path, header: Any) -> int:
    size = header.GetSize()
    if header.GetDimension() not in (2, 3, 4) or 0 in size:
        raise UnreadableFileError(
            f"{path}: size (x, y, z, ...) is {tuple(size)}; expected two to four axes, none of them empty"
        )
    return int(header.GetNumberOfComponents() * (size[3] if len(size) == 4 else 1))


def _grid(path: Path, header: Any) -> Grid:
    dims = header.GetDimension()
    size = (*header.GetSize(), 1)[:3]
    spacing = (*header.GetSpacing(), 1.0)[:3]
    origin = (*header.GetOrigin(), 0.0)[:3]
    if min(spacing) <= 0:
        raise UnreadableFileError(
            f"{path}: spacing is {' x '.join(f'{s:.4g}' for s in spacing)} mm (x, y, z); expected positive numbers: a flip belongs into "
            "the direction matrix, set both in the header"
        )
    direction: Floats = np.eye(3)
    kept = min(dims, 3)
    direction[:kept, :kept] = np.asarray(header.GetDirection()).reshape(dims, dims)[:kept, :kept]
    affine = np.eye(4)
    affine[:3, :3] = (_LPS_TO_RAS @ direction * np.asarray(spacing))[:, ::-1]
    affine[:3, 3] = _LPS_TO_RAS @ np.asarray(origin)
    try:
        return Grid.from_affine(tuple(size[::-1]), affine)
    except ValueError as error:
        raise UnreadableFileError(f"{path}: {error}; repair the header's directions or spacings") from error


def one_line(error: BaseException) -> str:
    """Return what an ITK error says, on one line."""
    # ITK puts the useful sentence last, after the place in its own source.
    return " ".join(str(error).split("ERROR:")[-1].split())
