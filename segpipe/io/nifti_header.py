"""Headers of NIfTI-1 and NIfTI-2 as they are in the file, and which part of them is believed (docs/conventions.md).

nibabel's own reader corrects a header while it reads it; what was stored can then no longer be compared, or copied.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from nibabel.nifti1 import Nifti1Header, Nifti1PairHeader
from nibabel.nifti2 import Nifti2Header, Nifti2PairHeader
from nibabel.quaternions import quat2mat
from nibabel.spatialimages import HeaderDataError

from segpipe.core.geometry import Floats, Grid, largest_displacement_mm, same_grid
from segpipe.core.regular import lies
from segpipe.errors import UnreadableFileError
from segpipe.io.notes import Note, Severity, shear_notes, size_notes
from segpipe.io.streams import first_bytes

FLIP_INDEX = np.array([[0, 0, 1, 0], [0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1]], dtype=np.float64)
"""Index (x, y, z) to index (z, y, x), and back."""
SIZE_TOLERANCE = 1e-3
"""Relative difference of voxel sizes from which a header contradicts itself."""
SIZE_CONTRADICTION = 1e-2
"""Relative difference of voxel sizes that no rounding makes."""
QUATERNION_TOLERANCE = 2e-3
"""Excess over 1 of a quaternion's sum of squares that rounding to three decimals may make: 2 x sqrt(3) x 0.0005."""
QUATERNION_ROUNDING = float(Nifti1Header.quaternion_threshold)
"""Distance of that sum from 1 which nibabel takes for rounding; it refuses more."""
_MM = {"meter": 1000.0, "micron": 0.001}
"""Millimetres in the units a header may state instead of millimetres."""
_MAGIC = {b"n+1": True, b"ni1": False, b"n+2": True, b"ni2": False}
"""Whether the voxels follow in the same file."""
_TOO_LONG = 4096


@dataclass(frozen=True)
class Stored:
    """A header and where its voxels are."""

    path: Path
    header: Any
    """nibabel's header over the stored bytes, nothing corrected."""
    voxels: Path
    """The file that holds them: the same, or the .img of a pair."""
    shape: tuple[int, ...]
    """(x, y, z, ...) as it is counted: trailing axes that are stated as 0 have one element."""

    @property
    def spatial(self) -> tuple[int, int, int]:
        """Voxels along x, y, z."""
        x, y, z = (*self.shape, 1, 1, 1)[:3]
        return x, y, z

    @property
    def sizes(self) -> Floats:
        """Voxel sizes of pixdim, in the header's unit; an axis that the file does not have needs none."""
        sizes = np.asarray(self.header["pixdim"][1:4], dtype=np.float64)
        lengths = np.linalg.norm(self.sform[:3, :3], axis=0)
        n = len(self.shape)
        spare = lengths if self.has_sform and np.isfinite(lengths).all() and (lengths > 0).all() else np.ones(3)
        sizes[n:] = np.where(np.isfinite(sizes[n:]) & (sizes[n:] > 0), sizes[n:], spare[n:])
        return sizes

    @property
    def has_sform(self) -> bool:
        """Whether the header says that it has an sform."""
        return int(self.header["sform_code"]) > 0

    @property
    def has_qform(self) -> bool:
        """Whether the header says that it has a qform."""
        return int(self.header["qform_code"]) > 0

    @property
    def sform(self) -> Floats:
        """The sform's matrix (4, 4), whether it can be used or not."""
        rows = [np.asarray(self.header[f"srow_{axis}"], dtype=np.float64) for axis in "xyz"]
        return np.vstack([*rows, [0.0, 0.0, 0.0, 1.0]])

    @property
    def quaternion_excess(self) -> float:
        """By how much the sum of squares of the stored part of the quaternion is over 1; a rotation's is not."""
        return float(np.square(self._quaternion).sum() - 1)

    @property
    def qform(self) -> Floats:
        """The qform's matrix (4, 4), whether it can be used or not. A quaternion that rounding made too long is made 1 long."""
        excess = self.quaternion_excess
        first = np.sqrt(-excess) if excess < -QUATERNION_ROUNDING else 0.0
        # nibabel makes it 1 long.
        rotation = quat2mat([first, *self._quaternion]) if np.isfinite(excess) else np.full((3, 3), np.nan)
        # Only -1 is a flip; 0, which old programs write, is 1.
        sizes = np.abs(self.sizes) * [1, 1, -1 if float(self.header["pixdim"][0]) < 0 else 1]
        affine = np.eye(4)
        affine[:3, :3] = rotation * sizes
        affine[:3, 3] = [float(self.header[f"qoffset_{axis}"]) for axis in "xyz"]
        return affine

    @property
    def qform_problem(self) -> str | None:
        """Why the qform cannot be used."""
        if not self.quaternion_excess <= QUATERNION_TOLERANCE:
            total = self.quaternion_excess + 1
            return f"the qform is no rotation (its quaternion's sum of squares is {total:.4g}, expected at most 1)"
        if not (np.isfinite(self.sizes) & (self.sizes != 0)).all():
            return f"the qform has no voxel sizes (pixdim is {by(self.sizes)})"
        return matrix_problem("qform", self.qform)

    @property
    def unit(self) -> str:
        """Name of the unit of length; "unknown" where none is stated."""
        try:
            return str(self.header.get_xyzt_units()[0])
        except KeyError:
            return "unknown"

    @property
    def to_mm(self) -> float:
        """Millimetres in one unit of length."""
        return _MM.get(self.unit, 1.0)

    @property
    def _quaternion(self) -> Floats:
        return np.array([float(self.header[f"quatern_{axis}"]) for axis in "bcd"], dtype=np.float64)


def open_stored(path: Path) -> Stored:
    """Read a NIfTI header.

    Raises
    ------
    UnreadableFileError
        If there is none, or its voxels are no real numbers.
    """
    content = first_bytes(path, _TOO_LONG)
    kind = _kind(path, content)
    try:
        header = kind(content[: kind.sizeof_hdr], check=False)
        shape = _counted(tuple(int(n) for n in header.get_data_shape()))
        number = header.get_data_dtype()
    except (HeaderDataError, ValueError, KeyError) as error:
        raise UnreadableFileError(f"{path}: not a readable NIfTI file ({' '.join(str(error).split())})") from error
    if number.fields is not None or np.issubdtype(number, np.complexfloating):
        name = f"colour ({''.join(number.fields)})" if number.fields else str(number)
        raise UnreadableFileError(
            f"{path}: voxels are {name}, expected one real number a voxel; convert it to separate channels"
        )
    if number.itemsize > 8:
        raise UnreadableFileError(
            f"{path}: voxels are {number}, expected numbers of at most 64 bits; save it as float32"
        )
    return Stored(path, header, path if kind.is_single else voxels_of(path), shape)


def voxels_of(header: Path) -> Path:
    """File with the voxels of a ``.hdr``, which may be compressed on its own.

    Raises
    ------
    UnreadableFileError
        If it is not there.
    """
    stem = header.name[: header.name.lower().rindex(".hdr")] if ".hdr" in header.name.lower() else header.stem
    names = [f"{stem}{ending}" for ending in (".img", ".img.gz", ".IMG", ".IMG.GZ", ".IMG.gz")]
    found = next((header.with_name(name) for name in names if lies(header.with_name(name))), None)
    if found is None:
        raise UnreadableFileError(f"{header}: its voxels, {names[0]}, are not beside it; copy both files")
    return found


def believed(stored: Stored) -> tuple[Floats, str]:
    """Return the affine from index (x, y, z) to RAS in the header's unit, and which part of the header it is: sform, qform, or none.

    Raises
    ------
    UnreadableFileError
        If no part of the header can be used.
    """
    problems = []
    if stored.has_sform:
        problem = matrix_problem("sform", stored.sform)
        if problem is None:
            return _with_sizes(stored), "sform"
        problems.append(problem)
    if stored.has_qform:
        if stored.qform_problem is None:
            return stored.qform, "qform"
        problems.append(stored.qform_problem)
    if problems:
        raise UnreadableFileError(f"{stored.path}: {'; '.join(problems)}; repair the header's sform or qform")
    if not (np.isfinite(stored.sizes) & (stored.sizes > 0)).all():
        raise UnreadableFileError(
            f"{stored.path}: pixdim says voxels of {by(stored.sizes)} mm (x, y, z), and neither sform nor qform says otherwise; "
            "expected positive sizes: set them in the header"
        )
    # nibabel's rule: x runs to the left, the middle of the image is at 0.
    middle = (np.array(stored.spatial) - 1) / 2 * stored.sizes * [-1, 1, 1]
    affine = np.diag([*(stored.sizes * [-1, 1, 1]), 1.0])
    affine[:3, 3] = -middle
    return affine, "none"


def grid_of(stored: Stored) -> Grid:
    """Grid in millimetres by the part of the header that is believed."""
    affine, part = believed(stored)
    affine[:3] *= stored.to_mm
    return Grid.from_affine(stored.spatial[::-1], affine @ FLIP_INDEX, placed=part != "none")


def notes_of(stored: Stored) -> list[Note]:
    """What is odd about the header, and what was believed."""
    affine, part = believed(stored)
    grid = grid_of(stored)
    notes = [*_size_contradictions(stored, affine, part), *_form_contradictions(stored, grid, part)]
    if part == "none":
        notes.append(
            Note("note", "neither sform nor qform: where left and right are is unknown; x is taken to run to the left")
        )
    if stored.unit in _MM:
        notes.append(
            Note("note", f"sizes are stated in {stored.unit}s; they are multiplied by {stored.to_mm:g} to millimetres")
        )
    elif stored.unit != "mm":
        notes.append(Note("note", "the unit of the voxel sizes is not stated; millimetres are assumed"))
    return [*notes, *size_notes(grid), *shear_notes(grid)]


def matrix_problem(name: str, affine: Floats) -> str | None:
    """Why a matrix cannot place voxels."""
    if not np.isfinite(affine).all():
        return f"the {name} cannot be used: it holds values that are no numbers"
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if not lengths.all():
        return f"the {name} cannot be used: its columns are {by(lengths)} long, expected positive lengths"
    try:
        Grid.from_affine((1, 1, 1), affine)
    except ValueError as error:
        return f"the {name} cannot be used: {error}"
    return None


def by(values: Floats) -> str:
    """Three numbers with crosses between them."""
    return " x ".join(f"{v:.4g}" for v in values)


def _kind(path: Path, content: bytes) -> Any:
    """Class of a header by its magic number."""
    if len(content) < 348:
        raise UnreadableFileError(f"{path}: not a readable NIfTI file: it has {len(content)} bytes, a header 348")
    one, two = content[344:347], content[4:7]
    if one in _MAGIC:
        return Nifti1Header if _MAGIC[one] else Nifti1PairHeader
    if two in _MAGIC and len(content) >= 540:
        return Nifti2Header if _MAGIC[two] else Nifti2PairHeader
    if 348 in (int.from_bytes(content[:4], "little"), int.from_bytes(content[:4], "big")):
        raise UnreadableFileError(
            f"{path}: is Analyze 7.5, expected NIfTI; such a file does not say where left and right are: "
            "convert it with the program that wrote it"
        )
    raise UnreadableFileError(f"{path}: not a readable NIfTI file: its magic number is missing")


def _counted(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Count axes behind the third that are stated as 0 as 1, as NIfTI's own library does."""
    return tuple(n if axis < 3 or n > 0 else 1 for axis, n in enumerate(shape))


def _sizes_usable(stored: Stored) -> bool:
    return bool((np.isfinite(stored.sizes) & (stored.sizes > 0)).all())


def _size_difference(stored: Stored) -> float:
    """Largest relative difference of the lengths of the sform's columns and pixdim."""
    return float(np.abs(np.linalg.norm(stored.sform[:3, :3], axis=0) / stored.sizes - 1).max())


def _with_sizes(stored: Stored) -> Floats:
    """The sform, with the lengths of pixdim where the two contradict each other."""
    affine = stored.sform
    if _sizes_usable(stored) and _size_difference(stored) > SIZE_TOLERANCE:
        affine[:3, :3] *= stored.sizes / np.linalg.norm(affine[:3, :3], axis=0)
    return affine


def _size_contradictions(stored: Stored, affine: Floats, part: str) -> list[Note]:
    if part == "none":
        return []
    if not _sizes_usable(stored):
        lengths = by(np.linalg.norm(affine[:3, :3], axis=0))
        return [
            Note(
                "warning",
                f"pixdim says voxels of {by(stored.sizes)} mm (x, y, z); the affine's {lengths} mm are believed",
            )
        ]
    if part != "sform" or _size_difference(stored) <= SIZE_TOLERANCE:
        return []
    lengths = by(np.linalg.norm(stored.sform[:3, :3], axis=0))
    severity: Severity = "warning" if _size_difference(stored) > SIZE_CONTRADICTION else "note"
    return [
        Note(
            severity,
            f"the sform says voxels of {lengths} mm (x, y, z), pixdim {by(stored.sizes)} mm; pixdim is believed",
        )
    ]


def _form_contradictions(stored: Stored, grid: Grid, part: str) -> list[Note]:
    if stored.has_sform and part == "qform":
        return [Note("warning", f"{matrix_problem('sform', stored.sform)}; the qform is believed")]
    if part == "qform" and stored.quaternion_excess >= QUATERNION_ROUNDING:
        return [Note("note", "the qform's quaternion is longer than 1 by rounding; it is made 1 long")]
    if part != "sform" or not stored.has_qform or not (np.isfinite(stored.sizes) & (stored.sizes != 0)).all():
        return []
    if stored.qform_problem is not None:
        return [Note("warning", f"{stored.qform_problem}; the sform is believed")]
    qform = stored.qform
    qform[:3] *= stored.to_mm
    other = Grid.from_affine(grid.shape, qform @ FLIP_INDEX)
    if same_grid(grid, other):
        return []
    apart = largest_displacement_mm(grid, other)
    return [Note("warning", f"sform and qform put the same voxel up to {apart:.3g} mm apart; the sform is believed")]
