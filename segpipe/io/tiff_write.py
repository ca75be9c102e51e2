"""TIFF files that segpipe writes: masks with the resolution, orientation and voxel size of their image."""

import json
from hashlib import sha256
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import tifffile
from numpy.typing import NDArray

from segpipe.core.geometry import Spacing
from segpipe.errors import UnreadableFileError
from segpipe.io.tiff_pages import opened, tag_value
from segpipe.io.tiff_spacing import case_of, content_of, spacing_file, spacing_of

_ORIENTATION = 274


def write_picture(output: Path, labels: NDArray[Any], source: Path | None, orientation: int | None = None) -> None:
    """Write one slice (Y, X); resolution and orientation are those of ``source`` where it is a TIFF file."""
    tags = _kept_tags(source) if source is not None else _orientation_tag(orientation)
    tifffile.imwrite(output, labels, photometric="minisblack", compression="zlib", metadata=None, **tags)


def write_stack(output: Path, labels: NDArray[Any], spacing: Spacing, tags: dict[str, Any] | None = None) -> None:
    """Write slices (Z, Y, X) as OME-TIFF with their voxel size (z, y, x) in mm."""
    sizes = {f"PhysicalSize{a}": s for a, s in zip("ZYX", spacing, strict=True)}
    units = {f"PhysicalSize{a}Unit": "mm" for a in "ZYX"}
    # Otherwise a random one: the same labels give the same bytes.
    name = UUID(bytes=sha256(np.ascontiguousarray(labels).tobytes()).digest()[:16])
    tifffile.imwrite(
        output,
        labels,
        ome=True,
        photometric="minisblack",
        compression="zlib",
        metadata={"axes": "ZYX", "UUID": f"urn:uuid:{name}", **sizes, **units},
        **(tags or {}),
    )


def write_stack_like(output: Path, labels: NDArray[Any], source: Path) -> None:
    """Write slices (Z, Y, X) with the voxel size of a stack, in its form: ImageJ's, OME-XML, or pages alone where it states none."""
    with opened(source) as tif:
        spacing, found = spacing_of(source, tif), dict(tif.imagej_metadata or {}) if tif.is_imagej else {}
    tags = _kept_tags(source)
    if spacing.source == "ImageJ":
        if labels.dtype.itemsize > 2:
            raise UnreadableFileError(
                f"{output}: label values over 65535 do not fit into an ImageJ stack; give the images as NIfTI"
            )
        metadata = {"axes": "ZYX", **{k: found[k] for k in ("spacing", "unit") if k in found}}
        tifffile.imwrite(output, labels, imagej=True, compression="zlib", metadata=metadata, **tags)
    elif spacing.source is None:
        tifffile.imwrite(output, labels, photometric="minisblack", compression="zlib", metadata=None, **tags)
    else:
        write_stack(output, labels, spacing.mm, tags)


def write_spacing_like(source: Path, output: Path) -> None:
    """Write the json of nnU-Net's Tiff3DIO beside a mask if its image has one.

    Raises
    ------
    UnreadableFileError
        If a json of that name is there that is something else.
    """
    beside = spacing_file(source)
    if beside is None:
        return
    target = output.with_name(f"{case_of(output)}.json")
    content = {"spacing": content_of(beside)["spacing"]}
    if target.exists():
        if spacing_file(output) != target:
            raise UnreadableFileError(
                f"{target}: is there already, and states no spacing; take it away, or choose another output"
            )
        if content_of(target) == content:
            return
    partial = target.with_name(f".{target.name}.partial")
    partial.write_text(json.dumps(content), encoding="utf-8", newline="\n")
    partial.replace(target)


def orientation_of(path: Path) -> int | None:
    """Return the orientation tag of a TIFF file, or None."""
    with opened(path) as tif:
        found = tag_value(tif.pages.first, "Orientation")
        return int(found) if found in range(1, 9) else None


def _kept_tags(source: Path) -> dict[str, Any]:
    with opened(source) as tif:
        page = tif.pages.first
        tags = _orientation_tag(tag_value(page, "Orientation"))
        pair = tag_value(page, "XResolution"), tag_value(page, "YResolution")
        if None not in pair:
            tags["resolution"] = pair
            tags["resolutionunit"] = tag_value(page, "ResolutionUnit") or 1
        return tags


def _orientation_tag(orientation: int | None) -> dict[str, Any]:
    return {} if orientation in (None, 1) else {"extratags": [(_ORIENTATION, "H", 1, int(orientation or 1), True)]}
