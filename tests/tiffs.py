"""TIFF files made tag by tag, for what no library writes."""

import struct
from pathlib import Path

import numpy as np

_CODES = {"B": 2, "H": 3, "I": 4}
"""B stands for text."""


def packed(values: np.ndarray, bits: int) -> bytes:
    """Rows of integers of few bits; each row begins at a whole byte."""
    rows = []
    for row in values:
        text = "".join(f"{int(v):0{bits}b}" for v in row)
        text += "0" * (-len(text) % 8)
        rows.append(int(text, 2).to_bytes(len(text) // 8, "big"))
    return b"".join(rows)


def page_tags(shape: tuple[int, int], data: bytes, *, bits: int = 8, photometric: int = 1, **more: object) -> dict:
    """Tags of one strip of grey values."""
    tags = {
        256: ("I", [shape[1]]),
        257: ("I", [shape[0]]),
        258: ("H", [bits]),
        259: ("H", [1]),
        262: ("H", [photometric]),
        273: ("I", data),
        277: ("H", [1]),
        278: ("I", [shape[0]]),
        279: ("I", [len(data)]),
    }
    return tags | {int(k.removeprefix("t")): v for k, v in more.items()}


def write_tiff(path: Path, *pages: dict, then: int | None = None) -> Path:
    """Write pages of tags {number: (format, values)}; bytes as the values of a tag lie elsewhere in the file, and it gets their place.

    ``then`` is the place that the last page names as the next one's; none by default.
    """
    content = bytearray(b"II*\0\0\0\0\0")
    link = 4
    for tags in pages:
        entries = []
        for number, (kind, values) in sorted(tags.items()):
            if isinstance(values, bytes):
                entries.append((number, kind, 1, struct.pack("<I", len(content))))
                content += values + b"\0" * (len(values) % 2)
                continue
            packed_values = struct.pack(f"<{len(values)}{kind}", *values)
            if len(packed_values) > 4:
                place = len(content)
                content += packed_values
                packed_values = struct.pack("<I", place)
            entries.append((number, kind, len(values), packed_values.ljust(4, b"\0")))
        struct.pack_into("<I", content, link, len(content))
        content += struct.pack("<H", len(entries))
        for number, kind, count, value in entries:
            content += struct.pack("<HHI", number, _CODES[kind], count) + value
        link = len(content)
        content += b"\0\0\0\0"
    if then is not None:
        struct.pack_into("<I", content, link, then)
    path.write_bytes(content)
    return path


def first_page_at(path: Path) -> int:
    """Place of the first page of a file."""
    return int(struct.unpack("<I", path.read_bytes()[4:8])[0])
