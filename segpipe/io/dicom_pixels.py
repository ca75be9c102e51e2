"""Stored values of a DICOM image, compared with the file's own tags, and the values that they stand for.

pydicom reads what is not compressed, and RLE. GDCM (in SimpleITK) decodes the rest; it gets the bare pixels, so that it neither
inverts MONOCHROME1 nor applies a slope.
"""

import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import SimpleITK as sitk  # noqa: N813 - the library's own short name
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.pixels import apply_modality_lut, pixel_array
from pydicom.uid import (
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    MultiFrameGrayscaleWordSecondaryCaptureImageStorage,
    RLELossless,
    generate_uid,
)

from segpipe.core.regular import regular
from segpipe.errors import UnreadableFileError
from segpipe.execution.memory import require_room_for
from segpipe.io.dicom_files import PIXELS, kept_back
from segpipe.io.dicom_streams import Numbers, require_streams
from segpipe.io.itk import one_line
from segpipe.io.slices import Slice

# What a decoder writes when it goes on with a damaged stream and makes values up. Other words are of its own attempts, such as
# "Unsupported JPEG data precision 12" of the first of three decoders. At the beginning: another thread may write there as well.
_COMPLAINT = re.compile(r"^\W*(?:corrupt|premature|error|invalid|inconsistent)\b.*", re.IGNORECASE | re.MULTILINE)
_PIXEL_MODULE = (
    "Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation",
)  # fmt: skip


def read_planes(slices: tuple[Slice, ...]) -> Iterator[NDArray[Any]]:
    """Yield the values (Y, X) of each slice: what is stored, by its slope and intercept or its file's lookup table.

    Raises
    ------
    UnreadableFileError
        If a file cannot be decoded, or holds something else than its tags say.
    """
    for s in slices:
        frames, has_table = _frames(s.file, s.file.stat().st_mtime_ns)
        if s.frame >= len(frames):
            raise UnreadableFileError(f"{s.file}: NumberOfFrames is {len(frames)}; expected frame {s.frame + 1}")
        plane = frames[s.frame]
        yield plane if has_table else _rescaled(plane, s.slope or 1.0, s.intercept)


def forget_last_file() -> None:
    """Free the frames of the file that was read last."""
    _frames.cache_clear()


def _rescaled(plane: NDArray[Any], slope: float, intercept: float) -> NDArray[Any]:
    """Whole numbers stay whole where slope and intercept are."""
    if plane.dtype.kind == "f" or not (slope.is_integer() and intercept.is_integer()):
        return plane * slope + intercept
    return plane.astype(np.int64) * int(slope) + int(intercept)


# The frames of an enhanced image come from one file: it is decoded once for all its slices.
@lru_cache(maxsize=1)
def _frames(file: Path, _time_ns: int) -> tuple[NDArray[Any], bool]:
    """Stored values (N, Y, X) of a file, or those of its lookup table, and whether it has one."""
    require_room_for(file, file.stat().st_size)
    try:
        with kept_back():
            image = pydicom.dcmread(regular(file), force=True)
            _require_pixels(file, image)
            frames = _stored(file, image)
            frames = frames.reshape((_n_frames(image), int(image.Rows), int(image.Columns)))
            table = image.get("ModalityLUTSequence")
            return (apply_modality_lut(frames, image), True) if table else (frames, False)
    except (UnreadableFileError, MemoryError):
        raise
    except Exception as error:
        raise UnreadableFileError(
            f"{file}: the pixels cannot be decoded ({one_line(error)}); export it again"
        ) from error


def _n_frames(image: Dataset) -> int:
    return int(image.get("NumberOfFrames") or 1)


def _require_pixels(file: Path, image: Dataset) -> None:
    if not any(name in image for name in PIXELS.values()):
        raise UnreadableFileError(f"{file}: the pixels cannot be decoded: PixelData is missing; export it again")
    # What old files leave out; `refusal_of` has seen the rest.
    for name, usual in (
        ("SamplesPerPixel", 1),
        ("PhotometricInterpretation", "MONOCHROME2"),
        ("PixelRepresentation", 0),
    ):
        if image.get(name) in (None, ""):
            setattr(image, name, usual)
    if "TransferSyntaxUID" not in image.file_meta:
        implicit, little = image.original_encoding
        native = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        image.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else native


def _stored(file: Path, image: Dataset) -> NDArray[Any]:
    syntax = image.file_meta.TransferSyntaxUID
    if "PixelData" not in image:
        # Single or double precision: what pydicom reads has the type that the element's name says.
        precise: NDArray[Any] = pixel_array(image)
        return precise
    if not syntax.is_compressed or not syntax.is_encapsulated:
        _require_length(file, image)
        if int(image.BitsAllocated) % 8 and int(image.BitsAllocated) != 1:
            return _compared(file, image, _by_gdcm(image))
        return _within_stored_bits(file, image, pixel_array(image))
    if syntax == RLELossless:
        return _compared(file, image, pixel_array(image))
    streams = require_streams(file, image)
    values = _by_gdcm(image)
    _require_bits(file, image, streams, values)
    return _compared(file, image, values)


def _require_length(file: Path, image: Dataset) -> None:
    """Compare the length of uncompressed pixels with rows x columns x bits x frames."""
    n_bits = int(image.Rows) * int(image.Columns) * int(image.BitsAllocated) * _n_frames(image)
    expected, found = -(-n_bits // 8), len(image.PixelData)
    is_padding = found - expected < expected / _n_frames(image) and not any(image.PixelData[expected:])
    if found < expected or (found > expected + expected % 2 and not is_padding):
        raise UnreadableFileError(
            f"{file}: the pixels cannot be decoded: PixelData holds {found} bytes; expected {expected} for Rows {image.Rows}, "
            f"Columns {image.Columns}, BitsAllocated {image.BitsAllocated} and {_n_frames(image)} frame(s): pixels were lost, or do not "
            "belong to it; export it again"
        )


def _within_stored_bits(file: Path, image: Dataset, values: NDArray[Any]) -> NDArray[Any]:
    """Refuse values that lie in other bits than the lowest: pydicom takes those, whatever HighBit says."""
    allocated, stored = int(image.BitsAllocated), int(image.get("BitsStored") or image.BitsAllocated)
    high = int(image.get("HighBit", stored - 1))
    if high != stored - 1:
        kind = np.dtype(f"{'>' if image.file_meta.TransferSyntaxUID == ExplicitVRBigEndian else '<'}u{allocated // 8}")
        if int(np.frombuffer(image.PixelData, kind, values.size).max(initial=0)) >> stored:
            raise UnreadableFileError(
                f"{file}: HighBit is {high} with BitsStored {stored}, expected {stored - 1}: which bits hold the values is not known; "
                "export it again"
            )
    return values


def _require_bits(file: Path, image: Dataset, streams: list[Numbers], values: NDArray[Any]) -> None:
    """Refuse bits of which it is not known whether they are negative numbers: fewer are compressed than are said to be stored."""
    bits = min((s.bits for s in streams if s.signed is None), default=int(image.BitsAllocated))
    stored = int(image.get("BitsStored") or image.BitsAllocated)
    reaches_sign = int(values.min()) < 0 or int(values.max()) >= 1 << bits - 1
    if int(image.get("PixelRepresentation") or 0) and bits < stored and reaches_sign:
        raise UnreadableFileError(
            f"{file}: BitsStored is {stored} with PixelRepresentation 1, but {bits} bits were compressed "
            f"({image.file_meta.TransferSyntaxUID.name}): which numbers are negative is not known; expected {stored} bits: export it "
            "again, without compression"
        )


def _compared(file: Path, image: Dataset, values: NDArray[Any]) -> NDArray[Any]:
    """Compare decoded values with the tags of the image."""
    expected = _n_frames(image) * int(image.Rows) * int(image.Columns)
    if values.size != expected:
        raise UnreadableFileError(
            f"{file}: {values.size} pixels were decoded; expected {expected} for Rows {image.Rows}, Columns {image.Columns} and "
            f"NumberOfFrames {_n_frames(image)}; export it again"
        )
    stored, signed = int(image.get("BitsStored") or image.BitsAllocated), int(image.get("PixelRepresentation") or 0)
    # A negative number may come as its bits, without those above.
    least, most = -(1 << stored - 1) if signed else 0, (1 << stored) - 1
    if values.dtype.kind not in "iu" or int(values.min()) < least or int(values.max()) > most:
        raise UnreadableFileError(
            f"{file}: decoded values are {values.dtype} from {values.min()} to {values.max()}; expected {least} to {most} for "
            f"BitsStored {stored} and PixelRepresentation {signed}; export it again"
        )
    wide = values.astype(np.int64)
    return np.where(wide >= 1 << stored - 1, wide - (1 << stored), wide) if signed else values


def _by_gdcm(image: Dataset) -> NDArray[Any]:
    """Decode by GDCM what pydicom does not: bare pixels, without slope, polarity or place."""
    bare = Dataset()
    bare.file_meta = FileMetaDataset()
    bare.file_meta.TransferSyntaxUID = image.file_meta.TransferSyntaxUID
    kind = MultiFrameGrayscaleWordSecondaryCaptureImageStorage
    bare.file_meta.MediaStorageSOPClassUID = bare.SOPClassUID = kind
    bare.file_meta.MediaStorageSOPInstanceUID = bare.SOPInstanceUID = generate_uid()
    for name in _PIXEL_MODULE:
        if image.get(name) is not None:
            setattr(bare, name, image.get(name))
    bare.SamplesPerPixel, bare.PhotometricInterpretation = 1, "MONOCHROME2"
    # All bits: GDCM would cut off what lies above those that are said to be stored.
    if int(image.BitsAllocated) % 8 == 0:
        bare.BitsStored, bare.HighBit = image.BitsAllocated, int(image.BitsAllocated) - 1
    bare.add(image["PixelData"])
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "bare.dcm"
        implicit, little = image.original_encoding
        pydicom.dcmwrite(place, bare, enforce_file_format=True, implicit_vr=implicit, little_endian=little)
        reader.SetFileName(str(regular(place)))
        with _chatter() as texts:
            values: NDArray[Any] = sitk.GetArrayFromImage(reader.Execute())
    if complaints := _COMPLAINT.findall("".join(texts)):
        raise ValueError("; ".join(dict.fromkeys(" ".join(c.split()) for c in complaints)))
    if values.ndim > 3:
        raise ValueError(f"decoded as {values.shape}, expected one sample a pixel")
    return values


@contextmanager
def _chatter() -> Iterator[list[str]]:
    """Keep back what GDCM and its decoders write to standard error, past Python; the yielded list holds it afterwards."""
    with suppress(OSError, ValueError):
        sys.stderr.flush()
    try:
        kept = os.dup(2)
    except OSError:
        # There is no standard error: one is made for as long as it is needed.
        kept = -1
    texts: list[str] = []
    with tempfile.TemporaryFile() as elsewhere:
        # The first free number may be that of standard error itself.
        is_apart = elsewhere.fileno() != 2
        if is_apart:
            os.dup2(elsewhere.fileno(), 2)
        try:
            yield texts
        finally:
            if kept >= 0:
                os.dup2(kept, 2)
                os.close(kept)
            elif is_apart:
                os.close(2)
            elsewhere.seek(0)
            texts.append(elsewhere.read().decode(errors="replace"))
