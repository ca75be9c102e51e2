"""DICOM series: headers by pydicom, voxels by SimpleITK (GDCM decodes the compressions that hospitals use).

A folder stands for one image, when the files in it and below it hold one image series. Other objects (segmentations, structure sets,
reports) are passed over.
"""

from collections import defaultdict
from dataclasses import dataclass
from functools import lru_cache
from os.path import commonpath
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import SimpleITK as sitk  # noqa: N813 - the library's own short name
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.uid import UID

from segpipe.core.geometry import Grid
from segpipe.errors import IrregularSeriesError, UnreadableFileError
from segpipe.io.itk import one_line
from segpipe.io.notes import Note, shear_notes
from segpipe.io.series import Slice, Stack, regular_stack

ENDINGS = (".dcm", ".ima")
_NO_IMAGES = {"SEG", "RTSTRUCT", "RTDOSE", "RTPLAN", "RTRECORD", "SR", "PR", "KO", "REG", "FID", "DOC", "RWV"}
# What tells apart volumes that lie at one place. The first group has one value in a volume; the others may vary within one.
_EXCLUSIVE = ("EchoTime", "b-value")
_TELLING = (
    "TemporalPositionIdentifier",
    "AcquisitionNumber",
    "TriggerTime",
    "InversionTime",
    "FlipAngle",
    "ConvolutionKernel",
    "ImageType",
    "InstanceNumber",
)
_B_VALUES = (
    ("SIEMENS MR HEADER", 0x0019, 0x0C),
    ("Philips Imaging DD 001", 0x2001, 0x03),
    ("GEMS_PARM_01", 0x0043, 0x39),
)
_DAMAGE = (
    InvalidDicomError,
    OSError,
    EOFError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    NotImplementedError,
)
_PATIENT = ("PatientID", "PatientName", "PatientBirthDate", "PatientSex")
_STUDY = (
    "StudyInstanceUID",
    "StudyID",
    "StudyDate",
    "StudyTime",
    "AccessionNumber",
    "ReferringPhysicianName",
    "StudyDescription",
)
_SERIES = (
    "SeriesInstanceUID",
    "SeriesNumber",
    "SeriesDescription",
    "Modality",
    "FrameOfReferenceUID",
    "PositionReferenceIndicator",
)


@dataclass(frozen=True)
class Series:
    """The files of one image series, as its headers describe it."""

    uid: str
    folder: Path
    """The one that holds all its files."""
    slices: tuple[Slice, ...]
    identity: dict[str, dict[str, str]]
    """Attributes of patient, study and series, by level."""
    problem: str | None = None
    """Why its slices cannot be trusted, when that is known before they are ordered."""

    @property
    def title(self) -> str:
        """Number, description and size, for messages."""
        told = self.identity["series"]
        return (
            f"series {told.get('SeriesNumber', '?')} {told.get('SeriesDescription', '')!r} ({len(self.slices)} images)"
        )


def holds_dicom(folder: Path, *, below: bool = True) -> bool:
    """Tell whether a folder, or (``below``) one below it, holds a DICOM file."""
    if not folder.is_dir():
        return False
    # Stops at the first: a folder may hold thousands.
    return any(f.is_file() and _looks_like_dicom(f) for f in (folder.rglob("*") if below else folder.iterdir()))


def find_series(folder: Path) -> list[Series]:
    """Every image series in and below a folder, by uid; files that are not DICOM images are passed over."""
    found: dict[str, list[tuple[Path, Dataset]]] = defaultdict(list)
    unreadable: dict[Path, str] = {}
    for file in _files(folder):
        if not _looks_like_dicom(file):
            continue
        try:
            header = _header(file)
        except UnreadableFileError as error:
            unreadable[file.parent] = str(error)
            continue
        if header is not None:
            found[str(header.get("SeriesInstanceUID", "")) or str(file.parent)].append((file, header))
    for parent in unreadable:
        # A folder in which nothing can be read is no series, and must not pass in silence.
        if not any(file.parent == parent for images in found.values() for file, _ in images):
            found[str(parent)] = []
    return [_series(uid, images, unreadable) for uid, images in sorted(found.items())]


def read_header(path: Path) -> tuple[Grid, int]:
    """Grid and number of channels, which is 1."""
    return _stack(path).grid, 1


def read(path: Path) -> tuple[NDArray[Any], Grid]:
    """Voxels (1, Z, Y, X) with slope and intercept applied, and their grid."""
    stack = _stack(path)
    return read_voxels(stack)[None], stack.grid


def header_notes(path: Path) -> list[Note]:
    """What is odd about a series that is regular all the same."""
    stack = _stack(path)
    return [*stack.notes, *shear_notes(stack.grid)]


def read_voxels(stack: Stack) -> NDArray[Any]:
    """Voxels (Z, Y, X) with slope and intercept applied: int16 where every value is one, else float32."""
    planes = []
    whole: dict[Path, NDArray[Any]] = {}
    for s in stack.slices:
        if s.file not in whole:
            whole = {s.file: _decode(s.file)}
        planes.append(whole[s.file][s.frame])
    kind = np.result_type(*planes)
    fits = (
        np.issubdtype(kind, np.integer)
        and min(int(p.min()) for p in planes) >= -32768
        and max(int(p.max()) for p in planes) <= 32767
    )
    voxels = np.empty(stack.grid.shape, dtype=np.int16 if fits else np.float32)
    for z, plane in enumerate(planes):
        voxels[z] = plane
    return voxels


def one_series(path: Path) -> Series:
    """Return the only image series of a folder.

    Raises
    ------
    IrregularSeriesError
        If there is none, or several.
    """
    found = find_series(path)
    if len(found) == 1:
        return found[0]
    listed = "; ".join(s.title for s in found[:6])
    raise IrregularSeriesError(
        f"{len(found)} image series{': ' + listed if found else ''}; expected one a folder: keep one, "
        "or let `segpipe convert` write each as a file"
    )


def files_behind(folder: Path) -> list[Path]:
    """Files whose change changes the series."""
    return [f for f in _files(folder) if _looks_like_dicom(f)]


def stack_of(series: Series) -> Stack:
    """Order a series' slices to a regular volume.

    Raises
    ------
    IrregularSeriesError
        With the reason, when it is none.
    """
    try:
        if series.problem:
            raise IrregularSeriesError(series.problem)
        return regular_stack(series.slices)
    except IrregularSeriesError as error:
        raise IrregularSeriesError(f"{series.title}: {error}") from error


def _stack(path: Path) -> Stack:
    return _cached_stack(path, tuple((f, f.stat().st_mtime_ns) for f in _files(path)))


@lru_cache(maxsize=4)
def _cached_stack(path: Path, _files_and_times: tuple[tuple[Path, int], ...]) -> Stack:
    try:
        return stack_of(one_series(path))
    except IrregularSeriesError as error:
        raise IrregularSeriesError(f"{path}: {error}") from error


def _files(folder: Path) -> list[Path]:
    return sorted(f for f in folder.rglob("*") if f.is_file() and not f.name.startswith("."))


def _looks_like_dicom(file: Path) -> bool:
    if file.name.upper() == "DICOMDIR":
        return False
    with file.open("rb") as stream:
        return stream.read(132)[128:] == b"DICM" or file.suffix.lower() in ENDINGS


def _header(file: Path) -> Dataset | None:
    """Attributes of an image, or None for an object that is none.

    Raises
    ------
    UnreadableFileError
        If the file is damaged: also when it ends before it says what it is, for it may be a slice.
    """
    try:
        header = pydicom.dcmread(file, stop_before_pixels=True, force=file.suffix.lower() in ENDINGS)
        if str(header.get("Modality", "")) in _NO_IMAGES:
            return None
        kind = header.file_meta.get("MediaStorageSOPClassUID") or header.get("SOPClassUID") or UID("")
    except _DAMAGE as error:
        raise UnreadableFileError(f"{file}: not a readable DICOM file ({error}); export it again") from error
    if "Rows" in header:
        return header
    if kind and "Image" not in kind.name:
        return None
    raise UnreadableFileError(f"{file}: ends before its image is described, the file is damaged; export it again")


def _series(uid: str, images: list[tuple[Path, Dataset]], unreadable: dict[Path, str]) -> Series:
    first = images[0][1] if images else Dataset()
    identity = {
        level: {name: str(first.get(name)) for name in names if first.get(name) not in (None, "")}
        for level, names in (("patient", _PATIENT), ("study", _STUDY), ("series", _SERIES))
    }
    parents = sorted({f.parent for f, _ in images}) or [Path(uid)]
    folder = Path(commonpath(parents))
    near = next((unreadable[parent] for parent in parents if parent in unreadable), None)
    if near:
        return Series(uid, folder, (), identity, f"{near}; it may be a slice of this series")
    try:
        return Series(uid, folder, tuple(s for file, header in images for s in _slices(file, header)), identity)
    except UnreadableFileError as error:
        return Series(uid, folder, (), identity, str(error))


def _slices(file: Path, header: Dataset) -> list[Slice]:
    """One slice of a classic image, one a frame of an enhanced one."""
    try:
        return _slices_of(file, header)
    except _DAMAGE as error:
        # pydicom converts a value when it is asked for.
        raise UnreadableFileError(
            f"{file.name}: an attribute cannot be read ({error}); repair or export it again"
        ) from error


def _slices_of(file: Path, header: Dataset) -> list[Slice]:
    if int(header.get("SamplesPerPixel") or 1) != 1:
        raise UnreadableFileError(
            f"{file.name}: pixels have {header.SamplesPerPixel} samples (colour); expected grey values: a screenshot is no volume"
        )
    if "PerFrameFunctionalGroupsSequence" not in header:
        n_frames = int(header.get("NumberOfFrames") or 1)
        if n_frames > 1:
            raise UnreadableFileError(
                f"{file.name}: {n_frames} frames without positions (no functional groups); not a volume"
            )
        return [_slice(file, header, header, 0)]
    shared = header.SharedFunctionalGroupsSequence[0] if header.get("SharedFunctionalGroupsSequence") else Dataset()
    frames = [_merged(shared, frame) for frame in header.PerFrameFunctionalGroupsSequence]
    scales = {(str(f.get("RescaleSlope", 1)), str(f.get("RescaleIntercept", 0))) for f in frames}
    if len(scales) > 1:
        raise UnreadableFileError(
            f"{file.name}: frames have {len(scales)} different slopes and intercepts; convert it to a classic series first"
        )
    return [_slice(file, header, frame, number) for number, frame in enumerate(frames)]


def _merged(*groups: Dataset) -> Dataset:
    """Attributes of functional groups, taken out of their sequences; later groups win."""
    merged = Dataset()
    for group in groups:
        for element in group:
            if element.VR == "SQ":
                for item in element.value:
                    merged.update(item)
    return merged


def _slice(file: Path, header: Dataset, plane: Dataset, frame: int) -> Slice:
    kinds = {name: str(plane.get(name, header.get(name))) for name in _TELLING if name in plane or name in header}
    echo_ms, b_value = plane.get("EchoTime"), _b_value(plane)
    # A tenth of a millisecond and a whole s/mm2: finer differences are rounding.
    kinds |= {} if echo_ms in (None, "") else {"EchoTime": f"{float(echo_ms):.1f}"}
    kinds |= {} if b_value is None else {"b-value": f"{b_value:.0f}"}
    spacing = _numbers(plane, "PixelSpacing", 2)
    position = _numbers(plane, "ImagePositionPatient", 3)
    distance, number = plane.get("SpacingBetweenSlices"), header.get("InstanceNumber")
    return Slice(
        file=file,
        instance_uid=str(header.get("SOPInstanceUID", "")),
        class_uid=str(header.get("SOPClassUID", "")),
        number=None if number in (None, "") else int(number) + frame,
        position=(position[0], position[1], position[2]) if position else None,
        orientation=_numbers(plane, "ImageOrientationPatient", 6),
        pixel_spacing_mm=(spacing[0], spacing[1]) if spacing and min(spacing) > 0 else None,
        shape=(int(header.Rows), int(header.Columns)),
        frame=frame,
        image_type=tuple(str(t) for t in header.get("ImageType") or ()),
        slice_distance_mm=float(distance) if distance not in (None, "") and float(distance) > 0 else None,
        kinds=kinds,
        exclusive=_EXCLUSIVE,
    )


def _b_value(plane: Dataset) -> float | None:
    """Diffusion weighting, where the standard or the maker of the scanner has put it."""
    value = plane.get("DiffusionBValue")
    for creator, group, element in _B_VALUES:
        if value in (None, ""):
            try:
                value = plane.get_private_item(group, element, creator).value
            except KeyError:
                continue
    if value in (None, ""):
        return None
    first = value if isinstance(value, str | int | float) else value[0]
    # GE adds a thousand million to say how it was measured.
    return float(first) % 1e9


def _numbers(plane: Dataset, name: str, n: int) -> tuple[float, ...] | None:
    value = plane.get(name)
    if value is None or isinstance(value, str | float | int) or len(value) != n:
        return None
    return tuple(float(v) for v in value)


def _decode(file: Path) -> NDArray[Any]:
    """Frames (N, Y, X) of a file, with slope and intercept applied."""
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(str(file))
    try:
        frames = sitk.GetArrayFromImage(reader.Execute())
    except RuntimeError as error:
        raise UnreadableFileError(
            f"{file}: the pixels cannot be decoded ({one_line(error)}); export it again"
        ) from error
    stacked: NDArray[Any] = frames.reshape((-1, *frames.shape[-2:]))
    return stacked
