"""Voxel size of a TIFF stack: the json of nnU-Net's Tiff3DIO beside it, OME-XML, or what ImageJ writes."""

import json
import re
from contextlib import suppress
from math import isclose, isfinite
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

from segpipe.core.geometry import Spacing
from segpipe.core.regular import read_text
from segpipe.errors import UnreadableFileError
from segpipe.io.tiff_pages import tag_value

_CHANNEL_SUFFIX = re.compile(r"_\d{4}$")
_MM = {
    "nm": 1e-6,
    "um": 1e-3,
    "\u00b5m": 1e-3,
    "\u03bcm": 1e-3,
    "micron": 1e-3,
    "microns": 1e-3,
    "micrometer": 1e-3,
    "mm": 1.0,
    "millimeter": 1.0,
    "cm": 10.0,
    "dm": 100.0,
    "m": 1000.0,
    "inch": 25.4,
    "in": 25.4,
    "\u00c5": 1e-7,
}
NOT_STATED_MM = (1.0, 1.0, 1.0)
"""nnU-Net's value."""
_NO_LENGTH = ("", "pixel", "pixels", "reference frame")
_TOLERANCE = 1e-3


class StackSpacing(NamedTuple):
    """Voxel size of a stack, (z, y, x) in mm, and where it is stated."""

    mm: Spacing
    source: str | None
    """Name of the json beside the file, "OME-XML" or "ImageJ"; None where no size is stated."""
    other: tuple[str, Spacing] | None = None
    """What the file's own metadata state, where the json beside it says otherwise."""


def spacing_of(path: Path, tif: Any) -> StackSpacing:
    """Find the voxel size of a stack.

    The json beside the file counts before the file's own metadata, for it was made to say so. Where nothing states a size, it is 1 mm.

    Raises
    ------
    UnreadableFileError
        If a size is stated in part, is not positive, or has an unknown unit.
    """
    beside = spacing_file(path)
    if beside is not None:
        stated, own = _of_json(beside), None
        with suppress(UnreadableFileError):
            own = _of_file(path, tif)
        differs = own is not None and not all(
            isclose(a, b, rel_tol=_TOLERANCE) for a, b in zip(stated, own.mm, strict=True)
        )
        return StackSpacing(stated, beside.name, (str(own.source), own.mm) if own is not None and differs else None)
    return _of_file(path, tif) or StackSpacing(NOT_STATED_MM, None)


def spacing_file(path: Path) -> Path | None:
    """Return the json that states a stack's spacing, as nnU-Net's Tiff3DIO names it: without the image's channel (_0000).

    A file of that name that does not name a spacing is something else's. One that does but is not JSON is returned: it is damaged.
    """
    stem = case_of(path)
    for name in dict.fromkeys((stem, _CHANNEL_SUFFIX.sub("", stem))):
        file = path.with_name(f"{name}.json")
        if file.is_file() and _names_spacing(file):
            return file
    return None


def case_of(path: Path) -> str:
    """Return the name of a TIFF file without its ending, .tif or .ome.tif."""
    stem = path.name.rpartition(".")[0]
    return stem[:-4] if stem.lower().endswith(".ome") else stem


def spacing_beside(path: Path) -> Spacing:
    """Voxel size as nnU-Net's Tiff3DIO knows it: that of the json beside the file, else 1 mm. The file's metadata are passed over."""
    beside = spacing_file(path)
    return NOT_STATED_MM if beside is None else _of_json(beside)


def _of_file(path: Path, tif: Any) -> StackSpacing | None:
    return _of_ome(path, tif) or _of_imagej(path, tif)


def _of_json(file: Path) -> Spacing:
    spacing = content_of(file)["spacing"]
    numbers = [float(s) for s in spacing if isinstance(s, int | float)] if isinstance(spacing, list) else []
    if len(numbers) != 3 or len(spacing) != 3 or not all(isfinite(s) and s > 0 for s in numbers):
        raise UnreadableFileError(f'{file}: "spacing" is {spacing!r}; expected three positive numbers [z, y, x] in mm')
    return (numbers[0], numbers[1], numbers[2])


def content_of(file: Path) -> dict[str, Any]:
    """Content of a json that states a spacing.

    Raises
    ------
    UnreadableFileError
        If it is not JSON.
    """
    try:
        content: dict[str, Any] = json.loads(read_text(file, "utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise UnreadableFileError(
            f"{file}: is not JSON ({error}); repair it, or take it away from beside the stack"
        ) from error
    return content


def _names_spacing(file: Path) -> bool:
    text = read_text(file, "utf-8-sig", "replace")
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return '"spacing"' in text
    return isinstance(content, dict) and "spacing" in content


def _of_ome(path: Path, tif: Any) -> StackSpacing | None:
    if not tif.is_ome:
        return None
    try:
        tree = ElementTree.fromstring(tif.ome_metadata)
    except ElementTree.ParseError as error:
        raise UnreadableFileError(f"{path}: its OME-XML cannot be read ({error}); save it again") from error
    pixels = next((e for e in tree.iter() if e.tag.rpartition("}")[2] == "Pixels"), None)
    stated = {} if pixels is None else {a: pixels.get(f"PhysicalSize{a}") for a in "ZYX"}
    if not any(stated.values()):
        return None
    missing = [a for a in "ZYX" if not stated[a]]
    if missing:
        raise UnreadableFileError(
            f"{path}: its OME-XML states no PhysicalSize{', PhysicalSize'.join(missing)}; expected all three: add what is missing, or put "
            f'{case_of(path)}.json with {{"spacing": [z, y, x]}} in mm beside it'
        )
    units = {a: str(pixels.get(f"PhysicalSize{a}Unit", "\u00b5m")) for a in "ZYX"}  # type: ignore[union-attr]
    if all(u in _NO_LENGTH for u in units.values()):
        return None
    z, y, x = (_in_mm(path, f"PhysicalSize{a}", str(stated[a]), units[a]) for a in "ZYX")
    return StackSpacing((z, y, x), "OME-XML")


def _of_imagej(path: Path, tif: Any) -> StackSpacing | None:
    if not tif.is_imagej:
        return None
    found = tif.imagej_metadata or {}
    unit = str(found.get("unit", "")).replace("\\u00B5", "\u00b5").strip()
    if unit.lower() in _NO_LENGTH:
        return None
    page = tif.pages.first
    # Pixels per unit. ImageJ leaves out what is 1.
    pitch = [1 / _ratio(path, page, f"{a}Resolution") for a in "YX"]
    z, y, x = (
        _in_mm(path, name, str(size), unit)
        for name, size in zip(
            ("spacing", "YResolution", "XResolution"), (found.get("spacing", 1.0), *pitch), strict=True
        )
    )
    return StackSpacing((z, y, x), "ImageJ")


def _ratio(path: Path, page: Any, name: str) -> float:
    value = tag_value(page, name)
    if value is None:
        return 1.0
    above, below = value
    if above <= 0 or below <= 0:
        raise UnreadableFileError(f"{path}: {name} is {above} / {below}; expected a positive number of pixels per unit")
    return float(above) / float(below)


def _in_mm(path: Path, name: str, size: str, unit: str) -> float:
    factor = _MM.get(unit) or _MM.get(unit.lower())
    if factor is None:
        raise UnreadableFileError(
            f"{path}: the unit of {name} is {unit!r}; expected one of {', '.join(sorted(set(_MM)))}: correct it, or put a json with "
            '{"spacing": [z, y, x]} in mm beside the file'
        )
    try:
        value = float(size) * factor
    except ValueError:
        value = 0.0
    if not (isfinite(value) and value > 0):
        raise UnreadableFileError(
            f"{path}: {name} is {size}; expected a positive number: correct it, or put a json beside the file"
        )
    return value
