"""Whether the pages of a TIFF stack are alike. tifffile decodes every page with the tags of the first one, and compares a few of them."""

from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from segpipe.errors import UnreadableFileError


def require_alike(path: Path, tif: Any, series: Any) -> None:
    """Compare the tags that decide how a page is decoded with those of the first page.

    Raises
    ------
    UnreadableFileError
        If a page differs, by its number and the name of the tag.
    """
    expected = _deciding(series.keyframe)
    for number, page in enumerate(series.pages, start=1):
        # Planes that follow each other behind one page have no tags of their own.
        found = _deciding(_with_tags(tif, page)) if page.offset else expected
        name = next((n for n in expected if found[n] != expected[n]), None)
        if name is not None:
            what = "not that of page 1"
            if name != "ColorMap":
                what = f"{_named(found[name])}, that of page 1 is {_named(expected[name])}"
            raise UnreadableFileError(
                f"{path}: page {number}: its {name} is {what}; expected pages that are alike: save the stack again from its source, "
                "or each page as its own file"
            )


def _with_tags(tif: Any, page: Any) -> Any:
    """Return a page with its own tags."""
    if isinstance(page, tifffile.TiffPage):
        return page
    tif.filehandle.seek(page.offset)
    return tifffile.TiffPage(tif, index=page.index)


def _deciding(page: Any) -> dict[str, Any]:
    """Values of the tags that decide how a page is decoded; those that are not stated have the value that the format gives them."""
    tiles = {name: page.tags.valueof(name) or 0 for name in ("TileWidth", "TileLength", "TileDepth")}
    rows = 0 if page.is_tiled else min(page.tags.valueof("RowsPerStrip") or 2**32, page.imagelength)
    has_palette = page.photometric == tifffile.PHOTOMETRIC.PALETTE
    return {
        "ImageWidth": page.imagewidth,
        "ImageLength": page.imagelength,
        "ImageDepth": page.imagedepth,
        "BitsPerSample": page.bitspersample,
        "SampleFormat": page.sampleformat,
        "SamplesPerPixel": page.samplesperpixel,
        "ExtraSamples": tuple(page.extrasamples),
        "Compression": page.compression,
        "Predictor": page.predictor,
        "PhotometricInterpretation": page.photometric,
        "PlanarConfiguration": page.planarconfig if page.samplesperpixel > 1 else 1,
        "FillOrder": page.fillorder,
        "T4Options": page.tags.valueof("T4Options") or 0,
        "YCbCrSubSampling": page.subsampling,
        **tiles,
        "RowsPerStrip": rows,
        "ColorMap": np.asarray(page.tags.valueof("ColorMap")).tobytes() if has_palette else None,
    }


def _named(value: Any) -> str:
    return str(getattr(value, "name", value))
