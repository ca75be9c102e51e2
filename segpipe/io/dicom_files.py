"""One DICOM file: whether it is one, its attributes, and whether it is an image. By pydicom, without pixels."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from struct import unpack_from
from typing import Any
from zlib import MAX_WBITS, decompressobj, error

from pydicom.dataset import Dataset
from pydicom.filereader import read_partial
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian
from pydicom.values import converters

from segpipe.core.regular import open_regular
from segpipe.errors import CaseError, UnreadableFileError
from segpipe.execution.memory import free_bytes, require_room_for
from segpipe.execution.quiet import collected_warnings, logger_levels

ENDINGS = (".dcm", ".ima")
PIXELS = {0x7FE00010: "PixelData", 0x7FE00008: "FloatPixelData", 0x7FE00009: "DoubleFloatPixelData"}
# Modality, or the beginning of the SOP class' name, of objects that are no images; and how a mask comes out of them.
_NO_IMAGES = {
    "SEG": "a DICOM segmentation (SEG)",
    "RTSTRUCT": "a DICOM structure set (RTSTRUCT)",
    "RTDOSE": "a radiotherapy dose (RTDOSE)",
    "RTPLAN": "a radiotherapy plan (RTPLAN)",
    "RTRECORD": "a radiotherapy record (RTRECORD)",
    "SR": "a report (SR)",
    "PR": "a presentation state (PR)",
    "KO": "a selection of images (KO)",
    "REG": "a registration (REG)",
    "FID": "a list of fiducials (FID)",
    "DOC": "a document (DOC)",
    "RWV": "a real world value mapping (RWV)",
}
_NO_IMAGE_CLASSES = {
    "Segmentation Storage": "SEG",
    "Label Map Segmentation Storage": "SEG",
    "Surface Segmentation Storage": "SEG",
    "RT Structure Set Storage": "RTSTRUCT",
    "RT Dose Storage": "RTDOSE",
    "RT Plan Storage": "RTPLAN",
}
_HOW_TO_CONVERT = {
    "SEG": "; its masks are not read yet: write them as NIfTI with 3D Slicer or dcmqi (segimage2itkimage)",
    "RTSTRUCT": "; its contours are not read yet: write them as NIfTI masks with 3D Slicer (SlicerRT) or plastimatch",
}
_HEAD_BYTES = 132
# Elements that the first group of a file without preamble may begin with: lengths, meta information, characters, class, identity.
_FIRST_ELEMENTS = {
    0x0002: {0x0000, 0x0001, 0x0002, 0x0003, 0x0010, 0x0012},
    0x0008: {0x0000, 0x0001, 0x0005, 0x0006, 0x0008, 0x0012, 0x0013, 0x0014, 0x0016, 0x0018, 0x0020, 0x0021, 0x0060},
}
_LONGEST_FIRST = 4096
_BLOCK = 1 << 20


class NoImageError(UnreadableFileError):
    """A DICOM object that is no image, such as a segmentation or a report."""


@dataclass(frozen=True)
class DicomFile:
    """The attributes of an image."""

    path: Path
    header: Dataset
    remarks: tuple[str, ...] = ()
    """What pydicom warned of."""


@dataclass(frozen=True)
class OtherObject:
    """A DICOM object that is no image: it has no vote in a series."""

    path: Path
    what: str
    """What it is, for messages."""
    series_uid: str
    kind: str = ""
    """Its modality, where it is a known one."""

    @property
    def advice(self) -> str:
        """How it becomes a mask; nothing where it cannot."""
        return _HOW_TO_CONVERT.get(self.kind, "")


@dataclass(frozen=True)
class Damaged:
    """A file that cannot be read, and may be a slice."""

    path: Path
    problem: str
    series_uid: str = ""
    """SeriesInstanceUID, where so much can be read."""


def looks_like_dicom(file: Path) -> bool:
    """Tell whether a file is DICOM, or claims to be: by its preamble, its ending, or its first elements."""
    if file.name.upper() == "DICOMDIR":
        return False
    try:
        with open_regular(file) as stream:
            head = stream.read(_HEAD_BYTES)
    except (OSError, UnreadableFileError):
        return file.suffix.lower() in ENDINGS
    return head[128:] == b"DICM" or file.suffix.lower() in ENDINGS or begins_with_elements(head)


def begins_with_elements(head: bytes) -> bool:
    """Tell whether bytes begin with DICOM elements: some devices write neither preamble nor meta information.

    Parameters
    ----------
    head : bytes
        The first bytes of a file; 132 are enough.
    """
    if head[:2] not in (b"\x02\x00", b"\x08\x00", b"\x00\x08") or len(head) < 16:
        return False
    order = ">" if head[:1] == b"\x00" else "<"
    before, place, n_read = (0, 0), 0, 0
    while place + 8 <= len(head) and n_read < 4:
        group, element = unpack_from(f"{order}HH", head, place)
        value = _value_of(head, place, order)
        if value is None or (group, element) <= before or group not in _FIRST_ELEMENTS:
            # Later groups may follow a short first one, in ascending order and with a length that a file has.
            return n_read > 1 and value is not None and before < (group, element) and group % 2 == 0
        if n_read == 0 and element not in _FIRST_ELEMENTS[group]:
            return False
        before, place, n_read = (group, element), value, n_read + 1
    return n_read > 1 or (n_read == 1 and place + 8 > len(head))


def _value_of(head: bytes, place: int, order: str) -> int | None:
    """Return where an element ends, or None if it is none."""
    kind = head[place + 4 : place + 6].decode("latin-1")
    if kind not in converters:
        length = unpack_from(f"{order}I", head, place + 4)[0]
        start = place + 8
        # Implicit: what stands there must be a length. Only little endian files are implicit.
        if order == ">":
            return None
    elif kind in ("OB", "OW", "OF", "OD", "OL", "SQ", "UN", "UT", "UC", "UR"):
        if place + 12 > len(head):
            return None
        length, start = unpack_from(f"{order}I", head, place + 8)[0], place + 12
    else:
        length, start = unpack_from(f"{order}H", head, place + 6)[0], place + 8
    return int(start + length) if length % 2 == 0 and length <= _LONGEST_FIRST else None


def open_file(file: Path) -> DicomFile | OtherObject | Damaged:
    """Read the attributes of a file. Nothing is raised: a damaged file is a result as well."""
    lengths: list[int] = []

    def at_pixels(tag: int, _kind: str | None, length: int) -> bool:
        if tag in PIXELS:
            lengths.append(length)
        return bool(tag in PIXELS)

    header = Dataset()
    try:
        require_room_for(file, max(file.stat().st_size, _unpacked_bytes(file)))
        with kept_back() as remarks, open_regular(file) as stream:
            header = read_partial(stream, stop_when=at_pixels, force=not _has_preamble(file))
            return _judged(file, header, bool(lengths), remarks)
    except UnreadableFileError as error:
        return Damaged(file, str(error), _text(header, "SeriesInstanceUID"))
    except CaseError as error:
        return Damaged(file, str(error))
    except Exception as error:  # noqa: BLE001 - a damaged file raises whatever its bytes lead to
        return Damaged(file, f"{file}: not a readable DICOM file ({error or type(error).__name__}); export it again")


def _unpacked_bytes(file: Path) -> int:
    """Return the bytes of a file that is compressed as a whole (Deflated Explicit VR), up to some more than the free memory; else 0."""
    with open_regular(file) as stream:
        head = stream.read(_LONGEST_FIRST)
        if head[128:132] != b"DICM" or DeflatedExplicitVRLittleEndian.encode() not in head:
            return 0
        # The first element states the length of the others of its group, which are not compressed.
        stream.seek(_HEAD_BYTES + 12 + int.from_bytes(head[_HEAD_BYTES + 8 : _HEAD_BYTES + 12], "little"))
        unpacker, n_bytes, most = decompressobj(-MAX_WBITS), 0, free_bytes()
        # A stream that is damaged is pydicom's to refuse.
        with suppress(error):
            while n_bytes <= most and (pending := unpacker.unconsumed_tail or stream.read(_BLOCK)):
                n_bytes += len(unpacker.decompress(pending, _BLOCK))
    return n_bytes


def _judged(file: Path, header: Dataset, has_pixels: bool, remarks: list[str]) -> DicomFile | OtherObject:
    kind = UID(str(header.file_meta.get("MediaStorageSOPClassUID") or header.get("SOPClassUID") or ""))
    series_uid = _text(header, "SeriesInstanceUID")
    modality = _NO_IMAGE_CLASSES.get(kind.name, _text(header, "Modality"))
    if modality in _NO_IMAGES:
        return OtherObject(file, _NO_IMAGES[modality], series_uid, modality)
    if has_pixels and "Rows" in header:
        return DicomFile(file, header, tuple(dict.fromkeys(remarks)))
    if kind and "Image" not in kind.name:
        return OtherObject(file, f"an object of class {kind.name}", series_uid)
    raise UnreadableFileError(
        f"{file}: ends before its {'pixels' if 'Rows' in header else 'image is described'}, the file is damaged; export it again"
    )


def _has_preamble(file: Path) -> bool:
    with open_regular(file) as stream:
        return stream.read(_HEAD_BYTES)[128:] == b"DICM"


def _text(header: Dataset, name: str) -> str:
    try:
        return str(header.get(name) or "")
    except Exception:  # noqa: BLE001 - pydicom converts a value when it is asked for, and this one is for a message
        return ""


@contextmanager
def kept_back() -> Iterator[list[str]]:
    """Keep back what pydicom says, and yield the list of its warnings."""
    with collected_warnings("pydicom") as texts, logger_levels({"pydicom": logging.CRITICAL}):
        yield texts


def image_type(header: Any) -> tuple[str, ...]:
    """Return the values of ImageType in capitals; none where it is not stated."""
    value = header.get("ImageType")
    return (value.upper(),) if isinstance(value, str) else tuple(str(t).upper() for t in value or ())


def refusal_of(header: Any) -> str | None:
    """Why an image is no part of a volume, whatever its position; None where nothing speaks against it."""
    if "MOSAIC" in image_type(header):
        return "is a Siemens mosaic (ImageType): the slices of a volume in one picture; dcm2niix unpacks it"
    samples, colours = (
        int(header.get("SamplesPerPixel") or 1),
        str(header.get("PhotometricInterpretation") or "").strip(),
    )
    if samples != 1:
        return (
            f"pixels have {samples} samples (colour, PhotometricInterpretation {colours}); expected grey values: "
            "a screenshot is no volume"
        )
    if colours not in ("", "MONOCHROME1", "MONOCHROME2"):
        return f"PhotometricInterpretation is {colours} (colours); expected grey values, MONOCHROME1 or MONOCHROME2"
    return None
