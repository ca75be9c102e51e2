"""Compressed frames of a DICOM image: whether each is whole, and what it says of its own numbers.

Markers: JPEG ISO/IEC 10918-1 annex B, JPEG-LS ISO/IEC 14495-1 annex C, JPEG 2000 ISO/IEC 15444-1 annex A.
"""

from dataclasses import dataclass
from pathlib import Path

from pydicom.dataset import Dataset
from pydicom.encaps import generate_frames

from segpipe.errors import UnreadableFileError

_END_OF_IMAGE = b"\xff\xd9"
_JPEG_2000 = b"\xff\x4f\xff\x51"
# From the beginning of a JPEG 2000 stream: two markers, then what stands before the first component's depth.
_DEPTH_AT = 42
# Where a frame begins; C4, C8 and CC of the same row mean something else. F7 is JPEG-LS.
_FRAME_MARKERS = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}


@dataclass(frozen=True)
class Numbers:
    """What a stream says of its numbers."""

    bits: int
    signed: bool | None
    """None: the compression has unsigned numbers alone, and a negative number is stored as its bits."""


def require_streams(file: Path, image: Dataset) -> list[Numbers]:
    """Return what each compressed frame says of its numbers; none where a frame does not say it.

    Raises
    ------
    UnreadableFileError
        If a frame is missing, has no end (decoders fill up what is missing), or is signed where the image is not.
    """
    n_frames = int(image.get("NumberOfFrames") or 1)
    frames = list(generate_frames(image.PixelData, number_of_frames=n_frames))
    if len(frames) != n_frames:
        raise UnreadableFileError(
            f"{file}: PixelData holds {len(frames)} frame(s), NumberOfFrames is {n_frames}; export it again"
        )
    short = [n for n, frame in enumerate(frames, start=1) if _END_OF_IMAGE not in frame[-64:]]
    if short:
        raise UnreadableFileError(
            f"{file}: PixelData of frame {short[0]} has no end ({image.file_meta.TransferSyntaxUID.name}): it was cut; export it again"
        )
    found = [numbers_of(frame) for frame in frames]
    representation = int(image.get("PixelRepresentation") or 0)
    for n, numbers in enumerate(found, start=1):
        if numbers and numbers.signed not in (None, bool(representation)):
            raise UnreadableFileError(
                f"{file}: PixelRepresentation is {representation}, but the compressed numbers of frame {n} are "
                f"{'signed' if numbers.signed else 'unsigned'} ({numbers.bits} bits, {image.file_meta.TransferSyntaxUID.name}): which "
                f"are negative is not known; expected {int(numbers.signed)}: export it again, without compression"
            )
    return [numbers for numbers in found if numbers]


def numbers_of(frame: bytes) -> Numbers | None:
    """Return what a compressed frame says of its numbers; None where it says nothing.

    Parameters
    ----------
    frame : bytes
        A stream of JPEG, JPEG-LS or JPEG 2000; the last may lie in a JP2 file.
    """
    if not frame.startswith(b"\xff\xd8"):
        start = frame.find(_JPEG_2000)
        if start < 0 or len(frame) <= start + _DEPTH_AT:
            return None
        depth = frame[start + _DEPTH_AT]
        return Numbers((depth & 0x7F) + 1, bool(depth & 0x80))
    place = 2
    while place + 5 <= len(frame) and frame[place] == 0xFF:
        marker = frame[place + 1]
        if marker in _FRAME_MARKERS:
            return Numbers(frame[place + 4], None)
        # Bytes between two markers are filled by FF.
        place += 1 if marker == 0xFF else 2 + int.from_bytes(frame[place + 2 : place + 4])
    return None
