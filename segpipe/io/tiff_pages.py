"""What the tags of a TIFF file say: its pages, its samples, and whether all of its data is there."""

import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from logging import CRITICAL
from math import ceil, prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tifffile

from segpipe.core.regular import open_regular, regular
from segpipe.errors import CaseError, UnreadableFileError
from segpipe.execution.quiet import logger_levels
from segpipe.io.jpeg_end import is_cut_short
from segpipe.io.tiff_alike import require_alike

JPEG_CODECS = (6, 7, 34892)
_ALPHA = (1, 2)
_REDUCED_OR_MASK = 1 | 4
_NUMBERS = {1: "u", 2: "i", 3: "f", 4: "u"}


class Samples(NamedTuple):
    """What one pixel of a page holds, by its tags."""

    photometric: str
    """Name of the PhotometricInterpretation."""
    bits: int
    dtype: "np.dtype[Any]"
    """Smallest number type that holds such a sample."""
    n_stored: int
    has_alpha: bool
    """Whether the last one is transparency."""

    @property
    def n_channels(self) -> int:
        """Samples that are the image's."""
        return self.n_stored - self.has_alpha


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """Open a TIFF file whose list of pages ends; what it contains but does not follow the format becomes the file's failure.

    Raises
    ------
    UnreadableFileError
        If it is not such a file, or if reading it in the context fails.
    """
    _require_end_of_pages(path)
    # Its messages have no file name. What they are about is checked here.
    with logger_levels({"tifffile": CRITICAL + 1}):
        try:
            # A part of a set of files is not the whole image: other files are not opened.
            with tifffile.TiffFile(regular(path), _multifile=False) as tif:
                yield tif
        except (CaseError, MemoryError):
            raise
        except Exception as error:
            raise UnreadableFileError(
                f"{path}: the pixels cannot be read ({' '.join(str(error).split())}); copy the file again from its source, "
                "or save it again as TIFF without compression"
            ) from error


def image_series(path: Path, tif: Any) -> Any:
    """Return the one image of a file; smaller copies of it, masks of its transparency and sub-images are passed over.

    Raises
    ------
    UnreadableFileError
        If there are several, or if pages of it are not in the file, or are not alike.
    """
    first, *others = tif.series
    more = [s for s in others if not _is_beside(s.keyframe)]
    if more:
        sizes = ", ".join(" x ".join(map(str, s.shape)) + f" {s.dtype}" for s in (first, *more))
        raise UnreadableFileError(
            f"{path}: holds {1 + len(more)} images ({sizes}); expected one: save each as its own file"
        )
    # Where its metadata do not fit the pages, tifffile passes over them.
    stated = "OME-XML" if tif.is_ome else "ImageJ's description" if tif.is_imagej else None
    if (stated and first.kind not in ("ome", "imagej")) or any(page is None for page in first.pages):
        raise UnreadableFileError(
            f"{path}: its {stated} does not fit the {len(tif.pages)} page(s) of the file: planes lie in other files, or are missing; "
            "save the whole image as one file"
        )
    require_alike(path, tif, first)
    return first


def n_passed_over(tif: Any) -> int:
    """Count images of a file that are smaller copies, masks or sub-images."""
    return len(tif.series) - 1


def samples_of(path: Path, page: Any) -> Samples:
    """What a pixel of a page holds.

    Raises
    ------
    UnreadableFileError
        If its tags state something that is not read, by the name of the tag.
    """
    bits = _one_value(path, page, "BitsPerSample", 1)
    kind = _one_value(path, page, "SampleFormat", 1)
    if kind not in _NUMBERS:
        raise _refused(path, f"SampleFormat is {kind} (complex numbers, or unknown)", "integers or floating point")
    size = next((s for s in (8, 16, 32, 64) if bits <= s), 0) if _NUMBERS[kind] == "u" else bits
    floats = {16: 16, 24: 32, 32: 32, 64: 64}
    size = floats.get(bits, 0) if kind == 3 else size
    if size not in (8, 16, 32, 64) or page.dtype is None:
        raise _refused(path, f"BitsPerSample is {bits} with SampleFormat {kind}", "1 to 64 bits")
    if page.compression not in tifffile.TIFF.DECOMPRESSORS:
        raise _refused(
            path, f"Compression is {_named(page.compression)}", "one of those that imagecodecs decodes, or none"
        )
    photometric = _photometric(path, page, kind)
    colours = 3 if photometric in ("RGB", "YCBCR") else 1
    extra = [int(e) for e in page.extrasamples]
    if page.samplesperpixel < colours:
        raise _refused(
            path,
            f"SamplesPerPixel is {page.samplesperpixel} with PhotometricInterpretation {photometric}",
            f"{colours} or more",
        )
    alphas = [n for n, e in enumerate(extra) if e in _ALPHA]
    if alphas and alphas != [len(extra) - 1]:
        raise _refused(path, f"ExtraSamples are {extra}", "transparency in the last sample only")
    if photometric == "PALETTE" and page.samplesperpixel != 1:
        raise _refused(path, f"SamplesPerPixel is {page.samplesperpixel} with PhotometricInterpretation PALETTE", "1")
    return Samples(photometric, bits, np.dtype(f"{_NUMBERS[kind]}{size // 8}"), page.samplesperpixel, bool(alphas))


def require_data(path: Path, series: Any) -> None:
    """Raise UnreadableFileError where a strip or tile of an image is missing, empty, cut off or shorter than its tags say."""
    size = path.stat().st_size
    for number, page in enumerate(series.pages, start=1):
        problem = _missing_data(series.keyframe, page.dataoffsets, page.databytecounts, size)
        if problem:
            raise UnreadableFileError(f"{path}: page {number}: {problem}; copy the file again from its source")
    if series.dataoffset is not None and series.keyframe.bitspersample >= 8:
        end = series.dataoffset + series.nbytes
        if end > size:
            raise UnreadableFileError(
                f"{path}: the pixels end at byte {end}, the file at {size}: it is cut off; copy it again from its source"
            )


def _missing_data(page: Any, offsets: Sequence[int], counts: Sequence[int], size: int) -> str | None:
    """What is missing of a page's strips or tiles in a file of ``size`` bytes."""
    unit, n_expected = "Tile" if page.is_tiled else "Strip", prod(page.chunked)
    parts = list(zip(offsets, counts, strict=False))[:n_expected]
    if len(parts) < n_expected:
        return f"{len(parts)} {unit.lower()}s in {unit}Offsets and {unit}ByteCounts, expected {n_expected}"
    for part, (offset, count) in enumerate(parts, start=1):
        if offset == 0 or count == 0:
            return f"{unit.lower()} {part} of {n_expected} is empty ({unit}Offsets {offset}, {unit}ByteCounts {count})"
        if offset + count > size:
            return f"{unit.lower()} {part} of {n_expected} ends at byte {offset + count}, the file at {size}: it is cut off"
    found, expected = sum(counts[:n_expected]), _stored_bytes(page) if page.compression == 1 else 0
    return f"{found} bytes of pixels by {unit}ByteCounts, expected {expected}" if found < expected else None


def require_codec_agrees(path: Path, tif: Any, series: Any, samples: Samples) -> None:
    """Compare what the first strip or tile holds, by its own codec, with the tags; tifffile makes it fit them, and values change.

    Raises
    ------
    UnreadableFileError
        If samples have another size than BitsPerSample states.
    """
    page = series.keyframe
    if page.compression in (1, 2, 3, 4, *JPEG_CODECS):
        return
    tif.filehandle.seek(page.dataoffsets[0])
    decoded = tifffile.TIFF.DECOMPRESSORS[page.compression](tif.filehandle.read(page.databytecounts[0]))
    if isinstance(decoded, np.ndarray) and decoded.ndim > 1:
        found, stated = 8 * decoded.dtype.itemsize, 8 * samples.dtype.itemsize
    else:
        times = len(decoded) / (_stored_bytes(page) / prod(page.chunked))
        found, stated = (
            (int(times * samples.bits), samples.bits) if times in (2, 4, 8) else (samples.bits, samples.bits)
        )
    if found != stated:
        raise UnreadableFileError(
            f"{path}: its compressed pixels ({_named(page.compression)}) have {found} bits, BitsPerSample states {samples.bits}; "
            "save the image again from its source"
        )


def require_whole_jpeg(path: Path, tif: Any, series: Any) -> None:
    """Raise UnreadableFileError where the JPEG stream of a strip or tile ends before its last pixel; decoders make up the rest."""
    page = series.keyframe
    if page.compression not in JPEG_CODECS:
        return
    for number, part in enumerate(series.pages, start=1):
        tables = {"jpegtables": part.jpegtables, "jpegheader": page.jpegheader}
        for stream, index in tif.filehandle.read_segments(
            part.dataoffsets, part.databytecounts, length=prod(page.chunked), flat=True
        ):
            if is_cut_short(stream, lambda s, index=index, tables=tables: page.decode(s, index, **tables)[0]):  # type: ignore[misc]
                unit = "tile" if page.is_tiled else "strip"
                raise UnreadableFileError(
                    f"{path}: page {number}: the JPEG stream of {unit} {index + 1} ends before its last pixel: it is cut off; "
                    "copy the file again from its source"
                )


def tag_value(page: Any, name: str) -> Any:
    """Value of a tag, or None."""
    tag = page.tags.get(name)
    return None if tag is None else tag.value


def _photometric(path: Path, page: Any, kind: int) -> str:
    stated = tag_value(page, "PhotometricInterpretation")
    if stated is None:
        return "RGB" if page.samplesperpixel in (3, 4) and page.bitspersample == 8 else "MINISBLACK"
    name = _named(stated)
    if name not in ("MINISBLACK", "MINISWHITE", "RGB", "PALETTE", "YCBCR"):
        inks = " (CMYK)" if name == "SEPARATED" else ""
        raise _refused(path, f"PhotometricInterpretation is {name}{inks}", "grey values, RGB or a palette")
    if name == "YCBCR" and page.compression not in JPEG_CODECS:
        raise _refused(path, f"PhotometricInterpretation is YCBCR with Compression {_named(page.compression)}", "RGB")
    if name in ("MINISWHITE", "PALETTE") and kind not in (1, 4):
        raise _refused(path, f"PhotometricInterpretation is {name} with SampleFormat {kind}", "MINISBLACK")
    return name


def _stored_bytes(page: Any) -> int:
    """Bytes of a page that is not compressed; rows begin at whole bytes."""
    separate, depth, length, width, contiguous = page.shaped
    if page.is_tiled:
        length, width = ceil(length / page.tilelength) * page.tilelength, ceil(width / page.tilewidth) * page.tilewidth
        depth = ceil(depth / page.tiledepth) * page.tiledepth
    return int(separate * depth * length * ceil(width * contiguous * page.bitspersample / 8))


def _is_beside(page: Any) -> bool:
    return bool(page.is_subifd or int(page.subfiletype) & _REDUCED_OR_MASK)


def _one_value(path: Path, page: Any, name: str, default: int) -> int:
    value = tag_value(page, name)
    values = {int(v) for v in (value if isinstance(value, tuple) else (default if value is None else value,))}
    if len(values) != 1:
        raise _refused(path, f"{name} is {', '.join(map(str, value))}", "the same for all samples")
    return values.pop()


def _named(value: Any) -> str:
    return str(getattr(value, "name", value))


def _refused(path: Path, found: str, expected: str) -> UnreadableFileError:
    return UnreadableFileError(f"{path}: {found}; expected {expected}: save it so, or as NIfTI")


def _require_end_of_pages(path: Path) -> None:
    """Follow the list of pages, each of which names the place of the next one, to its end."""
    size = path.stat().st_size
    seen: dict[int, int] = {}
    with open_regular(path) as file:
        order = {b"II": "<", b"MM": ">"}[file.read(2)]
        big = struct.unpack(f"{order}H", file.read(2))[0] == 43
        count_format, offset_format, entry = (f"{order}Q", f"{order}Q", 20) if big else (f"{order}H", f"{order}I", 12)
        file.seek(8 if big else 4)
        try:
            (offset,) = struct.unpack(offset_format, file.read(struct.calcsize(offset_format)))
            while offset:
                if offset in seen:
                    raise UnreadableFileError(
                        f"{path}: its list of pages loops: page {len(seen)} is followed by page {seen[offset]}; "
                        "save the image again from its source"
                    )
                seen[offset] = len(seen) + 1
                if offset >= size:
                    raise UnreadableFileError(
                        f"{path}: page {len(seen)} is said to begin at byte {offset}, the file ends at {size}: it is cut off; "
                        "copy it again from its source"
                    )
                file.seek(offset)
                (n_tags,) = struct.unpack(count_format, file.read(struct.calcsize(count_format)))
                file.seek(n_tags * entry, 1)
                (offset,) = struct.unpack(offset_format, file.read(struct.calcsize(offset_format)))
        except struct.error as error:
            raise UnreadableFileError(
                f"{path}: the list of tags of page {max(len(seen), 1)} is cut off at byte {size}; copy the file again from its source"
            ) from error
    if not seen:
        raise UnreadableFileError(f"{path}: holds no page; copy it again from its source")
