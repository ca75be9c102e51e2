"""PNG, JPEG and BMP pictures by Pillow, PNG of 16 bits by imagecodecs (Pillow reduces its colours to 8 bits)."""

import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from segpipe.core.geometry import Grid
from segpipe.core.regular import open_regular, regular
from segpipe.errors import UnreadableFileError
from segpipe.execution.memory import require_room_for
from segpipe.io.bmp_data import indices_with_other_bits
from segpipe.io.jpeg_end import is_cut_short
from segpipe.io.notes import Note
from segpipe.io.picture_values import (
    as_declared,
    grey_levels,
    orientation_notes,
    picture_grid,
    spread,
    without_transparency,
)
from segpipe.io.png_data import SAMPLES, n_missing_bytes
from segpipe.io.streams import whole_file

_ORIENTATION = 274
_FORMATS = ("PNG", "JPEG", "BMP")
_LOSSY = ("JPEG", "MPO")
_CHANNELS = {"1": 1, "L": 1, "LA": 1, "P": 1, "RGB": 3, "RGBA": 3}


def read_header(path: Path) -> tuple[Grid, int]:
    """Grid and number of channels."""
    bits, colour = _png_header(path)
    with _opened(path) as picture:
        grid = picture_grid((picture.height, picture.width))
        if bits == 16:
            return grid, SAMPLES[colour] - (colour in (4, 6))
        return grid, 3 if picture.mode == "P" and grey_levels(_palette(picture)) is None else _CHANNELS[picture.mode]


def read(path: Path) -> tuple[NDArray[Any], Grid]:
    """Pixels of an image (C, 1, Y, X), and their grid: grey values or colours; a palette is applied, few bits are spread over 8."""
    _require_room(path)
    _require_whole_png(path)
    _require_whole_jpeg(path)
    if _png_header(path)[0] == 16:
        return _read_16_bits(path)
    with _opened(path) as picture:
        if picture.mode == "P":
            _require_opaque(path, picture)
            levels, indices = grey_levels(_palette(picture)), _indices(path, picture)
            pixels = _palette(picture)[indices].transpose(2, 0, 1) if levels is None else levels[indices][None]
        else:
            pixels = _samples(path, picture)
        return np.ascontiguousarray(pixels[:, None]), picture_grid((picture.height, picture.width))


def read_labels(path: Path, accepted: tuple[int, ...] | None) -> tuple[NDArray[Any], Grid]:
    """Label values (C, 1, Y, X), and their grid: the stored integers, or the grey values of a palette without colours.

    Parameters
    ----------
    path : Path
    accepted : tuple of int, optional
        Declared values. They decide between two readings of a file: 1 or 255 for the white of one bit, for example.
    """
    _require_room(path)
    _require_whole_png(path)
    bits = _png_header(path)[0]
    if bits == 16:
        return _read_16_bits(path)
    with _opened(path) as picture:
        grid = picture_grid((picture.height, picture.width))
        if picture.format in _LOSSY:
            raise UnreadableFileError(
                f"{path}: is a JPEG picture, which changes the values of a mask; save the mask again from its source, as PNG"
            )
        if picture.mode == "P":
            levels, indices = grey_levels(_palette(picture)), _indices(path, picture)
            if levels is None:
                return indices[None, None], grid
            ordered = levels[0] == 0 and bool((np.diff(levels.astype(np.int64)) > 0).all())
            readings = [levels[indices], *([indices] if ordered else [])]
            if levels.tolist() == [255, 0]:
                # White is 1, as where the palette begins with black.
                readings.insert(0 if picture.format == "BMP" else 1, levels[indices] // np.uint8(255))
            return as_declared(readings, accepted)[None, None], grid
        samples = _samples(path, picture)[:, None]
        few = 1 if picture.mode == "1" else bits
        if few in (1, 2, 4):
            stored = samples // np.uint8(255 // (2**few - 1))
            return as_declared([stored, samples], accepted), grid
        return samples, grid


def header_notes(path: Path) -> list[Note]:
    """What is odd about a readable file, and what was believed."""
    with _opened(path) as picture:
        notes = orientation_notes(_orientation(picture))
        if picture.mode == "P":
            what = "its colours" if grey_levels(_palette(picture)) is None else "its grey values"
            notes.append(Note("note", f"the file has a palette: {what} are read, not the indices into it"))
        return notes


def orientation_of(path: Path) -> int | None:
    """Return the orientation tag of a picture, or None."""
    with _opened(path) as picture:
        return _orientation(picture)


def write_png(output: Path, labels: NDArray[Any], orientation: int | None) -> None:
    """Write one slice (Y, X) of 8 or 16 bits as grey PNG."""
    exif = Image.Exif()
    if orientation is not None:
        exif[_ORIENTATION] = orientation
    Image.fromarray(np.ascontiguousarray(labels)).save(
        output, "PNG", **({"exif": exif} if orientation is not None else {})
    )


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Open a picture of one frame; what goes wrong in the context becomes the file's failure.

    Raises
    ------
    UnreadableFileError
        If it is no such picture, has a kind of colour that is not read, or is damaged.
    """
    limit = Image.MAX_IMAGE_PIXELS
    try:
        # Slides have more pixels than the limit, which is meant for pictures from the internet.
        Image.MAX_IMAGE_PIXELS = None
        picture = Image.open(regular(path), formats=_FORMATS)
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise UnreadableFileError(
            f"{path}: not a readable image: neither PNG, JPEG, BMP nor TIFF ({_said(path, error)})"
        ) from error
    finally:
        Image.MAX_IMAGE_PIXELS = limit
    with picture:
        n_frames = getattr(picture, "n_frames", 1)
        if picture.format == "PNG" and n_frames > 1:
            raise UnreadableFileError(f"{path}: holds {n_frames} frames; expected one: save each as its own file")
        if picture.mode not in _CHANNELS and not picture.mode.startswith("I"):
            what = " (four inks)" if picture.mode == "CMYK" else ""
            raise UnreadableFileError(f"{path}: its colours are {picture.mode}{what}; expected grey or RGB: save it so")
        try:
            yield picture
        except (OSError, SyntaxError, ValueError, EOFError) as error:
            raise UnreadableFileError(
                f"{path}: the pixels cannot be read ({_said(path, error)}); copy the file again from its source"
            ) from error


def _orientation(picture: Any) -> int | None:
    """Orientation of a picture; None where it has none, or where its EXIF is damaged, which no pixel depends on."""
    try:
        found = picture.getexif().get(_ORIENTATION)
    except (OSError, SyntaxError, ValueError, KeyError, TypeError, struct.error):
        return None
    return found if found in range(1, 9) else None


def _require_room(path: Path) -> None:
    """Raise NoRoomError unless the pixels fit into the free memory, twice: decoded, and by channels."""
    grid, n_channels = read_header(path)
    require_room_for(path, 2 * n_channels * prod(grid.shape) * (2 if _png_header(path)[0] == 16 else 1))


def _require_whole_png(path: Path) -> None:
    """Compare the checksums of a PNG with its content, and the length of its pixels with its header; decoding does not."""
    with _opened(path) as picture:
        if picture.format != "PNG":
            return
        picture.verify()
    try:
        n_missing = n_missing_bytes(whole_file(path))
    except zlib.error as error:
        raise UnreadableFileError(
            f"{path}: the pixels cannot be read ({error}); copy the file again from its source"
        ) from error
    if n_missing:
        raise UnreadableFileError(
            f"{path}: its data (IDAT) holds {n_missing} bytes less than its header states; save the image again from its source"
        )


def _require_whole_jpeg(path: Path) -> None:
    """Refuse a JPEG that ends before its last pixel; decoding makes up the rest."""
    with _opened(path) as picture:
        if picture.format not in _LOSSY:
            return
    try:
        cut_short = is_cut_short(whole_file(path), imagecodecs.jpeg8_decode)
    except (RuntimeError, ValueError, IndexError) as error:
        raise UnreadableFileError(
            f"{path}: the pixels cannot be read ({_said(path, error)}); copy the file again from its source"
        ) from error
    if cut_short:
        raise UnreadableFileError(f"{path}: ends before its last pixel: it is cut off; copy it again from its source")


def _samples(path: Path, picture: Any) -> NDArray[Any]:
    """Samples of a picture without palette (C, Y, X), transparency taken away, grey of few bits spread over 8."""
    _require_opaque(path, picture)
    found = indices_with_other_bits(path, picture)
    pixels = np.array(picture) if found is None else found
    if picture.mode == "1":
        if pixels.size and pixels.max() > 1:
            raise UnreadableFileError(
                f"{path}: a pixel has colour {pixels.max()} of a palette of 2; save it again from its source"
            )
        pixels = spread(pixels.astype(np.uint8), 1)
    samples = np.moveaxis(pixels.reshape((*pixels.shape[:2], -1)), -1, 0)
    return samples[: _CHANNELS[picture.mode]]


def _require_opaque(path: Path, picture: Any) -> None:
    if picture.mode in ("LA", "RGBA") or "transparency" in picture.info:
        without_transparency(path, np.asarray(picture.convert("RGBA").getchannel("A"))[None])


def _palette(picture: Any) -> NDArray[np.uint8]:
    return np.frombuffer(bytes(picture.getpalette("RGB")), dtype=np.uint8).reshape(-1, 3)


def _indices(path: Path, picture: Any) -> NDArray[Any]:
    indices, n_colours = np.array(picture), len(_palette(picture))
    if indices.size and indices.max() >= n_colours:
        raise UnreadableFileError(
            f"{path}: a pixel has colour {indices.max()} of a palette of {n_colours}; save it again from its source"
        )
    return indices


def _read_16_bits(path: Path) -> tuple[NDArray[Any], Grid]:
    colour = _png_header(path)[1]
    with _opened(path) as picture:
        grid = picture_grid((picture.height, picture.width))
        if "transparency" in picture.info:
            raise UnreadableFileError(f"{path}: names a transparent colour (tRNS); save it without transparency")
    try:
        pixels = np.asarray(imagecodecs.png_decode(whole_file(path)))
    except (RuntimeError, ValueError) as error:
        raise UnreadableFileError(
            f"{path}: the pixels cannot be read ({_said(path, error)}); copy the file again from its source"
        ) from error
    expected = (*grid.shape[1:], SAMPLES[colour])
    if pixels.dtype != np.uint16 or pixels.size != np.prod(expected):
        raise UnreadableFileError(
            f"{path}: was decoded as {pixels.dtype} of {pixels.shape}; its header states 16 bits of {expected}"
        )
    samples = np.moveaxis(pixels.reshape(expected), -1, 0)
    samples = without_transparency(path, samples) if colour in (4, 6) else samples
    return np.ascontiguousarray(samples[:, None]), grid


def _png_header(path: Path) -> tuple[int, int]:
    """Bits and colour type of a PNG; zeros for other files."""
    with open_regular(path) as file:
        start = file.read(26)
    return (start[24], start[25]) if start.startswith(b"\x89PNG") and len(start) == 26 else (0, 0)


def _said(path: Path, error: BaseException) -> str:
    """What a library says, without the place of the file, which stands in front of it."""
    return " ".join(str(error).replace(str(path), path.name).split())
