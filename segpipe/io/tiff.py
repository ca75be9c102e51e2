"""TIFF by tifffile: pictures of one page, and stacks of pages with their voxel size. What is decoded is compared with the tags."""

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from segpipe.core.geometry import Grid, Shape
from segpipe.errors import UnreadableFileError
from segpipe.execution.memory import require_room_for
from segpipe.io.notes import Note
from segpipe.io.picture_values import (
    as_declared,
    grey_levels,
    orientation_notes,
    picture_grid,
    spread,
    without_transparency,
)
from segpipe.io.tiff_pages import (
    JPEG_CODECS,
    Samples,
    image_series,
    n_passed_over,
    opened,
    require_codec_agrees,
    require_data,
    require_whole_jpeg,
    samples_of,
    tag_value,
)
from segpipe.io.tiff_spacing import StackSpacing, spacing_of

_SLICES = "ZQI"
_CHANNELS = "CS"


class _Image(NamedTuple):
    """An image of a file, before its pixels are decoded."""

    tif: Any
    series: Any
    samples: Samples
    axes: str
    sizes: dict[str, int]
    grid: Grid
    spacing: StackSpacing | None
    """None for a picture of one page."""

    @property
    def page(self) -> Any:
        return self.series.keyframe

    @property
    def is_stored_by_tifffile(self) -> bool:
        return str(tag_value(self.page, "Software") or "").startswith("tifffile")

    @property
    def levels(self) -> "NDArray[Any] | None":
        """Grey values of a palette without colours."""
        return grey_levels(_palette(self.page)) if self.samples.photometric == "PALETTE" else None

    @property
    def is_coloured_palette(self) -> bool:
        return self.samples.photometric == "PALETTE" and self.levels is None


def read_header(path: Path) -> tuple[Grid, int]:
    """Grid and number of channels."""
    with opened(path) as tif:
        image = _image(path, tif)
        n_samples = 3 if image.is_coloured_palette else image.samples.n_channels
        return image.grid, n_samples * image.sizes.get("C", 1)


def read(path: Path) -> tuple[NDArray[Any], Grid]:
    """Voxels of an image (C, Z, Y, X), and their grid: grey values or colours; a palette is applied."""
    with opened(path) as tif:
        image = _image(path, tif)
        stored = _stored(path, image)
        if image.is_coloured_palette:
            stored = _palette(image.page)[stored[0]].transpose(3, 0, 1, 2)
        elif image.levels is not None:
            stored = image.levels[stored]
        elif image.samples.photometric == "MINISWHITE" and not _samples_are_values(image):
            stored = (2**image.samples.bits - 1) - stored
        return np.ascontiguousarray(stored), image.grid


def read_labels(path: Path, accepted: tuple[int, ...] | None) -> tuple[NDArray[Any], Grid]:
    """Label values (C, Z, Y, X), and their grid: the stored integers, but of one bit, where white is 1.

    Parameters
    ----------
    path : Path
    accepted : tuple of int, optional
        Declared values. They decide between two readings of a file: 1 or 255 for the white of one bit, for example.
    """
    with opened(path) as tif:
        image = _image(path, tif)
        if image.page.compression in JPEG_CODECS:
            raise UnreadableFileError(
                f"{path}: Compression is JPEG, which changes the values of a mask; save the mask again from its source without it"
            )
        stored = _stored(path, image)
        bits, levels = image.samples.bits, image.levels
        if levels is not None:
            ordered = levels[0] == 0 and bool((np.diff(levels.astype(np.int64)) > 0).all())
            return as_declared([levels[stored], *([stored] if ordered else [])], accepted), image.grid
        if image.samples.photometric == "MINISWHITE" and bits == 1 and not _samples_are_values(image):
            stored = 1 - stored
        readings = [stored, spread(stored, bits)] if bits in (1, 2, 4) and not image.is_coloured_palette else [stored]
        return as_declared(readings, accepted), image.grid


def header_notes(path: Path) -> list[Note]:
    """What is odd about a readable file, and what was believed."""
    with opened(path) as tif:
        image = _image(path, tif)
        notes = _spacing_notes(image) + orientation_notes(tag_value(image.page, "Orientation"))
        if image.samples.photometric == "MINISWHITE":
            values = (
                "the stored numbers are the values"
                if _samples_are_values(image)
                else "grey values are reversed, white is large"
            )
            notes.append(Note("note", f"PhotometricInterpretation is MINISWHITE: {values}"))
        if image.samples.photometric == "PALETTE":
            what = "its colours" if image.is_coloured_palette else "its grey values"
            notes.append(Note("note", f"the file has a palette: {what} are read, not the indices into it"))
        n_extra = image.samples.n_channels - (3 if image.samples.photometric in ("RGB", "YCBCR") else 1)
        if n_extra:
            notes.append(
                Note("note", f"{n_extra} sample(s) of unstated meaning (ExtraSamples 0): each is read as a channel")
            )
        if n_passed_over(tif):
            notes.append(
                Note("note", f"{n_passed_over(tif)} smaller copies or masks of the image in the file are passed over")
            )
        return notes


def _spacing_notes(image: _Image) -> list[Note]:
    if image.spacing is None:
        return []
    if image.spacing.source is None:
        message = (
            f"{image.grid.shape[0]} pages, and no voxel size is stated: they are taken as slices of 1 x 1 x 1 mm; "
            'put a json of the same name with {"spacing": [z, y, x]} in mm beside the file if that is wrong'
        )
        return [Note("warning", message)]
    if image.spacing.other is None:
        return []
    name, other = image.spacing.other
    first = f"{image.spacing.source} states voxels of {_sizes(image.spacing.mm)} mm"
    message = f"{first}, {name} in the file {_sizes(other)} mm: {image.spacing.source} is believed"
    return [Note("warning", message)]


def _sizes(spacing: tuple[float, ...]) -> str:
    return " x ".join(f"{s:.4g}" for s in spacing)


def _image(path: Path, tif: Any) -> _Image:
    series = image_series(path, tif)
    samples = samples_of(path, series.keyframe)
    axes, shape = str(series.get_axes(squeeze=False)), tuple(int(n) for n in series.get_shape(squeeze=False))
    sizes = {a: n for a, n in zip(axes, shape, strict=True) if n > 1 or a in "YX"}
    _require_known_axes(path, axes, shape)
    n_slices = max((sizes.get(a, 1) for a in _SLICES), default=1)
    shape_zyx: Shape = (n_slices, sizes.get("Y", 1), sizes.get("X", 1))
    if n_slices == 1:
        return _Image(tif, series, samples, axes, sizes, picture_grid(shape_zyx[1:]), None)
    spacing = spacing_of(path, tif)
    grid = replace(Grid.of_spacing(shape_zyx, spacing.mm), placed=False, sized=spacing.source is not None)
    return _Image(tif, series, samples, axes, sizes, grid, spacing)


def _require_known_axes(path: Path, axes: str, shape: tuple[int, ...]) -> None:
    long = [(a, n) for a, n in zip(axes, shape, strict=True) if n > 1]
    for axis, n in long:
        if axis == "T":
            raise UnreadableFileError(
                f"{path}: holds {n} points in time (axis T); expected one: save each as its own file"
            )
        if axis not in _SLICES + _CHANNELS + "YX":
            raise UnreadableFileError(
                f"{path}: has an axis {axis} of {n}; expected slices, channels, rows and columns only"
            )
    for group, what in ((_SLICES, "slices"), (_CHANNELS, "channels")):
        found = [f"{a} of {n}" for a, n in long if a in group]
        if len(found) > 1:
            raise UnreadableFileError(
                f"{path}: has {len(found)} axes of {what} ({', '.join(found)}); expected one: save it with one"
            )


def _stored(path: Path, image: _Image) -> NDArray[Any]:
    """Decode the samples (C, Z, Y, X) without transparency, and compare them with the tags."""
    require_data(path, image.series)
    require_codec_agrees(path, image.tif, image.series, image.samples)
    require_whole_jpeg(path, image.tif, image.series)
    require_room_for(path, 2 * image.series.nbytes)
    decoded = np.asarray(image.series.asarray(maxworkers=1))
    decoded = decoded.reshape(image.series.get_shape(squeeze=False))
    expected = image.samples.dtype
    if decoded.dtype == np.bool_:
        decoded = decoded.astype(np.uint8)
    if decoded.dtype != expected:
        raise UnreadableFileError(
            f"{path}: was decoded as {decoded.dtype}; BitsPerSample and SampleFormat state {expected}: save it without compression"
        )
    if (
        expected.kind == "u"
        and image.samples.bits < 8 * expected.itemsize
        and decoded.size
        and decoded.max() >= 2**image.samples.bits
    ):
        raise UnreadableFileError(
            f"{path}: was decoded to values up to {decoded.max()}; BitsPerSample is {image.samples.bits}: save it without compression"
        )
    # Axes of one are dropped: a file may have several of the same name.
    kept = "".join(image.sizes)
    decoded = decoded.reshape(list(image.sizes.values()))
    order = sorted(range(len(kept)), key=lambda n: "CSZQIYX".index(kept[n]))
    voxels = decoded.transpose(order).reshape((-1, *image.grid.shape))
    if len(voxels) != image.samples.n_stored * image.sizes.get("C", 1):
        raise UnreadableFileError(
            f"{path}: was decoded to {len(voxels)} samples; SamplesPerPixel is {image.samples.n_stored}"
        )
    return without_transparency(path, voxels) if image.samples.has_alpha else voxels


def _samples_are_values(image: _Image) -> bool:
    """Whether a program that does not look at MINISWHITE wrote the file: tifffile marks every array of booleans so."""
    return image.samples.bits == 1 and image.is_stored_by_tifffile


def _palette(page: Any) -> NDArray[np.uint8]:
    """Colours of a palette, (N, 3). Its entries have 16 bits; some programs fill in 8."""
    entries = np.asarray(page.colormap).T
    return (entries if entries.max() < 256 else entries >> 8).astype(np.uint8)
