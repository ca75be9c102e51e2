"""What an NRRD or MetaImage file itself says, so that what a decoder returns can be compared with it.

ITK takes a spacing of NaN for 1 mm, passes over units, reads compressed voxels without looking at their checksum, and reads other
memory where the size of compressed voxels is not stated. Specifications: teem.sourceforge.net/nrrd/format.html and
itk.org/Wiki/ITK/MetaIO/Documentation.
"""

import re
from dataclasses import dataclass
from math import isfinite, prod
from pathlib import Path

from segpipe.core.regular import lies, open_regular
from segpipe.errors import UnreadableFileError

_LONGEST = 1 << 20
"""Bytes in which a header must end; a segmentation of hundreds of segments needs some ten thousand."""
MM = {
    **dict.fromkeys(("mm", "millimeter", "millimeters", "millimetre", "millimetres"), 1.0),
    **dict.fromkeys(
        ("um", "µm", "μm", "micron", "microns", "micrometer", "micrometers", "micrometre", "micrometres"), 1e-3
    ),
    **dict.fromkeys(("nm", "nanometer", "nanometers", "nanometre", "nanometres"), 1e-6),
    **dict.fromkeys(("cm", "centimeter", "centimeters", "centimetre", "centimetres"), 10.0),
    **dict.fromkeys(("m", "meter", "meters", "metre", "metres"), 1000.0),
}
"""Millimetres in a unit of length."""
_NRRD_TYPES = {
    "int8": ("signed char", "int8", "int8_t"),
    "uint8": ("uchar", "unsigned char", "uint8", "uint8_t"),
    "int16": ("short", "short int", "signed short", "signed short int", "int16", "int16_t"),
    "uint16": ("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"),
    "int32": ("int", "signed int", "int32", "int32_t"),
    "uint32": ("uint", "unsigned int", "uint32", "uint32_t"),
    "int64": ("longlong", "long long", "long long int", "signed long long", "signed long long int", "int64", "int64_t"),
    "uint64": ("ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t"),
    "float32": ("float",),
    "float64": ("double",),
}
_META_TYPES = {
    "MET_CHAR": "int8", "MET_UCHAR": "uint8", "MET_SHORT": "int16", "MET_USHORT": "uint16", "MET_INT": "int32", "MET_UINT": "uint32",
    "MET_LONG": "int32", "MET_ULONG": "uint32", "MET_LONG_LONG": "int64", "MET_ULONG_LONG": "uint64", "MET_FLOAT": "float32",
    "MET_DOUBLE": "float64",
}  # fmt: skip
_ENCODINGS = {
    "raw": "raw",
    "gz": "gzip",
    "gzip": "gzip",
    "txt": "ascii",
    "text": "ascii",
    "ascii": "ascii",
    "hex": "hex",
}


@dataclass(frozen=True)
class Stated:
    """The fields of a header that are compared, or that ITK does not hand on."""

    number: str
    """Name of the number type."""
    n_values: int
    """Numbers in the file."""
    encoding: str
    """raw, gzip, zlib, ascii or hex."""
    big_endian: bool
    files: tuple[Path, ...]
    """Files with the voxels: the header's own, or others."""
    start: int | None
    """First byte of the voxels in the first of these; None where it is counted from its end."""
    spacing: tuple[float, ...] | None
    """Voxel sizes that are stated without directions, in the header's unit; None where there is none, () where directions hold them."""
    units: tuple[str, ...]
    """Units of length, lower case; empty where none is stated."""
    has_space: bool
    """Whether it is stated where left and right are."""
    keys: dict[str, str]
    """Further names and values (``name:=value``)."""

    @property
    def to_mm(self) -> float:
        """Millimetres in the header's unit; 1 where it is not known."""
        found = {MM[unit] for unit in self.units if unit in MM}
        return found.pop() if len(found) == 1 else 1.0


def is_nrrd(path: Path) -> bool:
    """Tell by its ending whether a file is NRRD; else it is MetaImage."""
    return path.name.lower().endswith((".nrrd", ".nhdr"))


def stated_in(path: Path) -> Stated:
    """Read the text of a header.

    Raises
    ------
    UnreadableFileError
        If a field that is needed is missing or cannot be read.
    """
    with open_regular(path) as file:
        content = file.read(_LONGEST)
    try:
        return _nrrd(path, content) if is_nrrd(path) else _meta(path, content)
    except (ValueError, KeyError) as error:
        raise UnreadableFileError(f"{path}: not a readable image: its header cannot be read ({error})") from error


def _nrrd(path: Path, content: bytes) -> Stated:
    if not content.startswith(b"NRRD"):
        raise UnreadableFileError(f"{path}: not a readable image: it does not begin with NRRD")
    end = re.search(rb"\r?\n\r?\n", content)
    lines = content[: end.start() if end else None].decode("utf-8", "replace").splitlines()[1:]
    fields: dict[str, str] = {}
    keys: dict[str, str] = {}
    listed: list[str] = []
    for line in lines:
        if line.startswith("#"):
            continue
        if match := re.match(r"([^:=]+):=(.*)", line):
            keys[match[1]] = match[2]
        elif match := re.match(r"([^:]+): ?(.*)", line):
            fields[match[1].strip().lower().replace(" ", "")] = match[2].strip()
        elif fields.get("datafile", "").upper().startswith("LIST"):
            listed.append(line.strip())
    for name in ("type", "dimension", "sizes", "encoding"):
        if name not in fields:
            raise UnreadableFileError(f"{path}: not a readable image: the field {name!r} is missing in its header")
    dimension, sizes = int(fields["dimension"]), [int(n) for n in fields["sizes"].split()]
    if not 2 <= dimension <= 4 or len(sizes) != dimension or min(sizes) < 1:
        raise UnreadableFileError(
            f"{path}: dimension is {dimension}, sizes are {fields['sizes']}; expected two to four axes, none of them empty"
        )
    encoding = _ENCODINGS.get(fields["encoding"].lower())
    if encoding is None:
        raise UnreadableFileError(
            f"{path}: its encoding is {fields['encoding']}, which is not read; expected raw or gzip: save it again with one of these"
        )
    number = next((n for n, names in _NRRD_TYPES.items() if fields["type"].lower() in names), None)
    if number is None:
        raise UnreadableFileError(f"{path}: its type is {fields['type']}; expected integers or floating-point numbers")
    kinds = fields.get("kinds", "").lower().split()
    if "complex" in kinds:
        raise UnreadableFileError(f"{path}: voxels are complex numbers, expected real ones; save magnitude first")
    files = _data_files(path, fields["datafile"], listed) if "datafile" in fields else (path,)
    at = end.end() if end and files == (path,) else 0
    skip = int(fields.get("byteskip", 0))
    _require_plain_4d(path, fields, dimension, kinds)
    spacing = _spacings(fields)
    return Stated(
        number=number,
        n_values=prod(sizes),
        encoding=encoding,
        big_endian=fields.get("endian", "little").lower() == "big",
        files=files,
        start=None if skip < 0 or int(fields.get("lineskip", 0)) else at + skip,
        spacing=spacing,
        units=_nrrd_units(fields),
        has_space=fields.get("space", "").lower().startswith(("left", "right", "las", "lps", "ras", "rps")),
        keys=keys,
    )


def _require_plain_4d(path: Path, fields: dict[str, str], dimension: int, kinds: list[str]) -> None:
    """Refuse axes of which it is not known whether they are of space or of channels; ITK's words for it are its own."""
    directions = re.findall(r"none|\([^)]*\)", fields.get("spacedirections", "").lower())
    in_space = sum(d != "none" for d in directions)
    n_space = len(directions[[d != "none" for d in directions].index(True)].split(",")) if in_space else 0
    if directions and in_space != n_space:
        raise UnreadableFileError(
            f"{path}: {in_space} of its {dimension} axes lie in a space of {n_space}; expected as many: "
            "save a flat image with a third axis of one element, and three directions"
        )
    spatial = ("domain", "space")
    other = [k for k in kinds if k not in spatial]
    if dimension == 4 and directions and not other and len(kinds) == 4:
        raise UnreadableFileError(
            f"{path}: all four axes are of space; expected three, and one of channels ('list' or 'vector')"
        )
    if dimension == 4 and in_space == 3 and not other:
        raise UnreadableFileError(
            f"{path}: has four axes, and the header has no 'kinds' that say which holds the channels; "
            "expected 'kinds' with one 'list' or 'vector' (for the axis without a direction) and three 'domain'"
        )


def _spacings(fields: dict[str, str]) -> tuple[float, ...] | None:
    if "spacedirections" in fields:
        return ()
    if "spacings" not in fields:
        return None
    sizes = tuple(float(s) for s in fields["spacings"].split())
    known = tuple(s for s in sizes if isfinite(s))
    # NaN is NRRD's way to say that an axis has no spacing.
    return sizes if known else None


def _nrrd_units(fields: dict[str, str]) -> tuple[str, ...]:
    named = re.findall(r'"([^"]*)"', fields.get("spaceunits", "") or fields.get("units", ""))
    return tuple(unit.strip().lower() for unit in named if unit.strip() and unit.strip() != "???")


def _data_files(path: Path, named: str, listed: list[str]) -> tuple[Path, ...]:
    words = named.split()
    if words and words[0].upper() == "LIST":
        names = [name for name in listed if name]
    elif "%" in named and len(words) >= 4:
        first, last, step = (int(n) for n in words[1:4])
        names = [words[0] % number for number in range(first, last + (1 if step > 0 else -1), step)]
    else:
        names = [named]
    files = tuple(path.parent / name for name in names)
    gone = next((file for file in files if not lies(file)), None)
    if gone is not None or not files:
        raise UnreadableFileError(
            f"{path}: its voxels should be in {gone or named}, which is not there; copy it beside the header"
        )
    return files


def _meta(path: Path, content: bytes) -> Stated:
    end = re.search(rb"(?im)^\s*ElementDataFile\s*=[^\n]*\n?", content)
    if end is None:
        raise UnreadableFileError(f"{path}: not a readable image: the field 'ElementDataFile' is missing in its header")
    lines = content[: end.end()].decode("utf-8", "replace").splitlines()
    fields = {
        name.strip().lower(): value.strip() for name, _, value in (line.partition("=") for line in lines) if value
    }
    for name in ("NDims", "DimSize", "ElementType"):
        if name.lower() not in fields:
            raise UnreadableFileError(f"{path}: not a readable image: the field {name!r} is missing in its header")
    n_axes, sizes = int(fields["ndims"]), [int(n) for n in fields["dimsize"].split()]
    if not 2 <= n_axes <= 4 or len(sizes) != n_axes or min(sizes) < 1:
        raise UnreadableFileError(
            f"{path}: NDims is {n_axes}, DimSize is {fields['dimsize']}; expected two to four axes, none of them empty"
        )
    kind = fields["elementtype"].upper().removesuffix("_ARRAY")
    if kind not in _META_TYPES:
        raise UnreadableFileError(
            f"{path}: its ElementType is {fields['elementtype']}; expected integers or floating-point numbers"
        )
    if not _yes(fields.get("binarydata", "true")):
        raise UnreadableFileError(
            f"{path}: its voxels are stored as text (BinaryData = False), which is not read; save it as binary"
        )
    spacing = fields.get("elementspacing") or fields.get("elementsize")
    sizes_mm = None if spacing is None else tuple(float(s) for s in spacing.split())
    if sizes_mm is not None and (len(sizes_mm) != n_axes or not all(isfinite(s) for s in sizes_mm)):
        raise UnreadableFileError(
            f"{path}: its spacing is {spacing}; expected {n_axes} numbers: set them in the header"
        )
    named = fields["elementdatafile"]
    local = named.upper() == "LOCAL"
    if named.upper().startswith("LIST"):
        text = content[end.end() :].decode("utf-8", "replace")
        files = _data_files(path, "LIST", [line.strip() for line in text.splitlines()])
    else:
        files = (path,) if local else _data_files(path, named, [])
    skip = int(fields.get("headersize", 0))
    if local and skip > 0:
        raise UnreadableFileError(
            f"{path}: HeaderSize is {skip} in a file that holds its own voxels; expected none: remove it"
        )
    return Stated(
        number=_META_TYPES[kind],
        n_values=prod(sizes) * int(fields.get("elementnumberofchannels", 1)),
        encoding="zlib" if _yes(fields.get("compresseddata", "false")) else "raw",
        big_endian=_yes(fields.get("binarydatabyteordermsb", fields.get("elementbyteordermsb", "false"))),
        files=files,
        start=None if skip < 0 else (end.end() if local else skip),
        spacing=sizes_mm,
        units=(fields["distanceunits"].lower(),) if fields.get("distanceunits", "?") not in ("?", "") else (),
        has_space=True,
        keys={},
    )


def _yes(value: str) -> bool:
    return value.strip().lower() in ("true", "1", "t", "yes")
