"""NRRD, MetaImage and other ITK formats by SimpleITK. ITK's world is LPS; segpipe's is RAS."""

import json
from math import isclose, isfinite, prod
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk  # noqa: N813 - the library's own short name
from numpy.typing import NDArray

from segpipe.core.geometry import Floats, Grid
from segpipe.core.regular import open_regular, regular
from segpipe.core.system_names import name_problem, shown_name
from segpipe.errors import UnreadableFileError
from segpipe.execution.memory import require_room_for
from segpipe.io.notes import Note, shear_notes, size_notes
from segpipe.io.streams import require_no_second_volume, take
from segpipe.io.text_header import MM, Stated, is_nrrd, stated_in

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0])
_NUMBERS = {
    getattr(sitk, f"sitk{vector}{kind}"): name
    for vector in ("", "Vector")
    for kind, name in (
        *((f"{sign}Int{bits}", f"{sign.lower()}int{bits}") for sign in ("", "U") for bits in (8, 16, 32, 64)),
        ("Float32", "float32"),
        ("Float64", "float64"),
    )
}
"""Number type of each of ITK's voxel types."""


def _name_for_itk(path: Path) -> str:
    """Return a path as ITK takes it; one that is no text would end the whole process there.

    Raises
    ------
    UnreadableFileError
    """
    problem = name_problem(str(path))
    if problem is not None:
        raise UnreadableFileError(f"{shown_name(str(path))}: {problem}")
    return str(path)


def read_header(path: Path) -> tuple[Grid, int]:
    """Grid and number of channels."""
    stated, header = stated_in(path), open_header(path)
    n_channels = _n_channels(path, header)
    return _grid(path, header, stated), n_channels


def read(path: Path) -> tuple[NDArray[Any], Grid]:
    """Voxels (C, Z, Y, X), and their grid."""
    stated, header = stated_in(path), open_header(path)
    n_channels = _n_channels(path, header)
    grid = _grid(path, header, stated)
    _require_stated(path, stated, header)
    if stated.encoding == "zlib":
        voxels = _unpacked(path, stated, header)
    else:
        _require_length(path, stated)
        _require_range(path, stated)
        voxels = _decoded(path, header, stated)
    return np.ascontiguousarray(voxels.reshape((n_channels, *grid.shape))), grid


def segment_keys(path: Path) -> dict[str, str]:
    """Names and values by which 3D Slicer describes the segments of a NRRD file; empty where there are none."""
    keys = stated_in(path).keys if is_nrrd(path) else {}
    return {name: value for name, value in keys.items() if name.startswith("Segment")}


def header_notes(path: Path) -> list[Note]:
    """What is odd about a readable file's header, and what was believed."""
    stated, header = stated_in(path), open_header(path)
    grid = _grid(path, header, stated)
    notes = []
    if is_nrrd(path) and not stated.has_space:
        notes.append(
            Note(
                "note",
                "no 'space' is stated: where left and right are is unknown; axes are taken as left, posterior, superior",
            )
        )
    n_stated = sum(isfinite(size) for size in stated.spacing or ())
    if stated.spacing is None or (stated.spacing and n_stated < min(header.GetDimension(), 3)):
        notes.append(Note("note", "no voxel size is stated; 1 mm is assumed where there is none"))
    return [*notes, *_unit_notes(stated), *size_notes(grid), *shear_notes(grid)]


def write_labels_like(source: Path, output: Path, labels: NDArray[Any]) -> None:
    """Write an array (Z, Y, X) with the source's origin, spacing, direction, unit and metadata."""
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
        # Keys that ITK derives from the image itself would contradict it; those of segments describe other voxels.
        if not key.startswith(("NRRD_", "ITK_", "Segment")):
            image.SetMetaData(key, header.GetMetaData(key))
    sitk.WriteImage(image, _name_for_itk(output), useCompression=True)
    _state_units(output, stated_in(source).units, kept)


def write(output: Path, array: NDArray[Any], grid: Grid) -> None:
    """Write an array (Z, Y, X) on a grid."""
    image = sitk.GetImageFromArray(array)
    direction = _LPS_TO_RAS @ np.asarray(grid.direction)[:, ::-1]
    image.SetSpacing([float(s) for s in grid.spacing_mm[::-1]])
    image.SetOrigin([float(o) for o in _LPS_TO_RAS @ np.asarray(grid.origin_mm)])
    image.SetDirection([float(d) for d in direction.ravel()])
    sitk.WriteImage(image, _name_for_itk(output), useCompression=True)


def files_behind(path: Path) -> list[Path]:
    """The file, and those that hold its voxels where a header (.mhd, .nhdr) names them."""
    try:
        files = stated_in(path).files
    except UnreadableFileError:
        return [path]
    return [path, *(file for file in files if file != path)]


def open_header(path: Path) -> Any:
    """Open a file for reading by SimpleITK, its header read.

    Raises
    ------
    UnreadableFileError
        If it is no image of real numbers.
    """
    reader = sitk.ImageFileReader()
    reader.SetFileName(_name_for_itk(regular(path)))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise UnreadableFileError(f"{path}: not a readable image ({one_line(error)})") from error
    if "complex" in sitk.GetPixelIDValueAsString(reader.GetPixelID()):
        raise UnreadableFileError(f"{path}: voxels are complex numbers, expected real ones; save magnitude first")
    return reader


def _decoded(path: Path, header: Any, stated: Stated) -> NDArray[Any]:
    """Voxels by ITK, components first."""
    # ITK's image, and the array of its voxels.
    require_room_for(path, 2 * stated.n_values * np.dtype(stated.number).itemsize)
    try:
        image = header.Execute()
    except RuntimeError as error:
        how = (
            ""
            if stated.encoding == "raw"
            else f" ({stated.encoding}): they end too early, or their checksum does not fit"
        )
        raise UnreadableFileError(
            f"{path}: its voxels cannot be decoded{how or f': {one_line(error)}'}; copy the file again from its source"
        ) from error
    voxels = sitk.GetArrayFromImage(image)
    return np.moveaxis(voxels, -1, 0) if image.GetNumberOfComponentsPerPixel() > 1 else voxels


def _unpacked(path: Path, stated: Stated, header: Any) -> NDArray[Any]:
    """Compressed voxels of a MetaImage, components first. ITK does not look at their checksum, and needs their size to be stated."""
    if len(stated.files) > 1 or stated.start is None:
        raise UnreadableFileError(
            f"{path}: its compressed voxels lie in several files or behind a header of unknown size; save it again"
        )
    number = np.dtype(stated.number).newbyteorder(">" if stated.big_endian else "<")
    n_bytes = stated.n_values * number.itemsize
    taken = take(stated.files[0], 0, n_bytes, inside="zlib", at=stated.start)
    require_no_second_volume(path, taken, n_bytes)
    n_components = header.GetNumberOfComponents()
    voxels = taken.content.view(number).astype(stated.number, copy=False)
    shape = (*header.GetSize()[::-1], n_components)
    return np.moveaxis(voxels.reshape(shape), -1, 0) if n_components > 1 else voxels.reshape(shape[:-1])


def _require_stated(path: Path, stated: Stated, header: Any) -> None:
    """Refuse a file of which ITK makes other numbers than its header states."""
    found = _NUMBERS.get(header.GetPixelID(), sitk.GetPixelIDValueAsString(header.GetPixelID()))
    n_values = prod(header.GetSize()) * header.GetNumberOfComponents()
    if (found, n_values) != (stated.number, stated.n_values):
        raise UnreadableFileError(
            f"{path}: its header states {stated.n_values} numbers of type {stated.number}, "
            f"but it is decoded as {n_values} of type {found}; save it again in another format"
        )


def _require_length(path: Path, stated: Stated) -> None:
    """Refuse voxels that are shorter than the header says, behind which a second volume follows, or whose first byte is not known."""
    if stated.start is None or stated.encoding not in ("raw", "gzip"):
        return
    n_bytes, first = stated.n_values * np.dtype(stated.number).itemsize, stated.files[0]
    if stated.encoding == "gzip":
        # ITK stops at the last voxel it wants, and would not see what follows.
        if len(stated.files) == 1:
            require_no_second_volume(path, take(first, 0, n_bytes, at=stated.start), n_bytes)
        return
    found = sum(file.stat().st_size for file in stated.files) - stated.start * len(stated.files)
    if found < n_bytes:
        raise UnreadableFileError(
            f"{path}: the file is truncated: it holds {max(found, 0)} bytes of voxels, by its header expected {n_bytes}; "
            "copy it again from its source"
        )
    if len(stated.files) > 1 or found == n_bytes:
        return
    if found % n_bytes == 0:
        require_no_second_volume(path, take(first, stated.start, n_bytes), n_bytes)
    elif stated.start == 0:
        raise UnreadableFileError(
            f"{path}: {first.name} holds {found} bytes, by the header expected {n_bytes}, and it is not stated where the voxels begin; "
            "state it (HeaderSize, byte skip), or save the file again"
        )


def _require_range(path: Path, stated: Stated) -> None:
    """Refuse numbers in text that do not fit into the type of the header: ITK takes other numbers for them."""
    if stated.encoding != "ascii" or stated.start is None or len(stated.files) > 1:
        return
    with open_regular(stated.files[0]) as file:
        file.seek(stated.start)
        try:
            values = np.array(file.read().replace(b",", b" ").split(), dtype=np.float64)
        except ValueError as error:
            raise UnreadableFileError(f"{path}: its voxels are no numbers ({error}); save it again") from error
    if values.size != stated.n_values:
        raise UnreadableFileError(
            f"{path}: holds {values.size} numbers, by its header expected {stated.n_values}; copy it again, or correct the sizes in "
            "the header"
        )
    number = np.dtype(stated.number)
    if values.size and np.issubdtype(number, np.integer):
        limits = np.iinfo(number)
        if values.min() < limits.min or values.max() > limits.max or (values != np.rint(values)).any():
            raise UnreadableFileError(
                f"{path}: its voxels run from {values.min():g} to {values.max():g}; expected whole numbers of type {stated.number}, "
                "as its header states: save it again with a type that holds them"
            )


def _unit_notes(stated: Stated) -> list[Note]:
    names = sorted(set(stated.units))
    shown = ", ".join(repr(name) for name in names)
    if not names or names == ["mm"]:
        return []
    if any(name not in MM for name in names) or len({MM[name] for name in names}) > 1:
        return [Note("warning", f"sizes are stated in {shown}, expected one unit of length; millimetres are assumed")]
    if stated.to_mm == 1:
        return []
    return [Note("note", f"sizes are stated in {shown}; they are multiplied by {stated.to_mm:g} to millimetres")]


def _state_units(output: Path, units: tuple[str, ...], n_axes: int) -> None:
    """Write the unit of length, which ITK drops, into a header that ITK wrote: the numbers beside it are of that unit."""
    if not units or all(MM.get(unit, 1.0) == 1.0 for unit in units):
        return
    content = regular(output).read_bytes()
    if is_nrrd(output):
        end = content.index(b"\n\n") + 1
        # One for each axis of space.
        names = [*units, units[-1], units[-1]][:n_axes]
        line = f"space units: {' '.join(json.dumps(name, ensure_ascii=False) for name in names)}\n"
    else:
        end = content.index(b"ElementDataFile")
        line = f"DistanceUnits = {units[0]}\n"
    output.write_bytes(content[:end] + line.encode() + content[end:])


def _n_channels(path: Path, header: Any) -> int:
    size = header.GetSize()
    if header.GetDimension() not in (2, 3, 4) or 0 in size:
        raise UnreadableFileError(
            f"{path}: size (x, y, z, ...) is {tuple(size)}; expected two to four axes, none of them empty"
        )
    return int(header.GetNumberOfComponents() * (size[3] if len(size) == 4 else 1))


def _grid(path: Path, header: Any, stated: Stated) -> Grid:
    dims = header.GetDimension()
    size = (*header.GetSize(), 1)[:3]
    spacing = (*header.GetSpacing(), 1.0)[:3]
    origin = (*header.GetOrigin(), 0.0)[:3]
    if min(spacing) <= 0:
        raise UnreadableFileError(
            f"{path}: spacing is {' x '.join(f'{s:.4g}' for s in spacing)} mm (x, y, z); expected positive numbers: a flip belongs into "
            "the direction matrix, set both in the header"
        )
    _require_spacing(path, stated, spacing[:dims])
    direction: Floats = np.eye(3)
    kept = min(dims, 3)
    direction[:kept, :kept] = np.asarray(header.GetDirection()).reshape(dims, dims)[:kept, :kept]
    affine = np.eye(4)
    affine[:3, :3] = (_LPS_TO_RAS @ direction * np.asarray(spacing))[:, ::-1]
    affine[:3, 3] = _LPS_TO_RAS @ np.asarray(origin)
    affine[:3] *= stated.to_mm
    if dims == 2 and stated.to_mm != 1:
        # The single slice's thickness is not of the file, nor in its unit.
        affine[:3, 0] /= stated.to_mm
    try:
        return Grid.from_affine(tuple(size[::-1]), affine)
    except ValueError as error:
        raise UnreadableFileError(f"{path}: {error}; repair the header's directions or spacings") from error


def _require_spacing(path: Path, stated: Stated, spacing: tuple[float, ...]) -> None:
    """Refuse a file of which ITK takes another spacing than it states."""
    # NRRD may state one for an axis of channels as well, and NaN for an axis that has none.
    known = iter(size if isfinite(size) else 1.0 for size in stated.spacing or ())
    if stated.spacing and not all(any(isclose(size, found, rel_tol=1e-5) for size in known) for found in spacing):
        raise UnreadableFileError(
            f"{path}: its header states a spacing of {' x '.join(f'{s:g}' for s in stated.spacing)}, but "
            f"{' x '.join(f'{s:g}' for s in spacing)} is decoded; expected the same: repair the header"
        )


def one_line(error: BaseException) -> str:
    """Return what an ITK error says, on one line."""
    # ITK puts the useful sentence last, after the place in its own source.
    return " ".join(str(error).split("ERROR:")[-1].split())
