"""Preprocessed arrays as blosc2: compressed, and chunked so that a patch is read without the rest."""

import os
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
from numpy.typing import NDArray

from segpipe.errors import ArtefactError

# One block is what is decompressed at the least: near a core's second-level cache.
_BLOCK_BYTES = 256 * 1024
_CHUNK_BYTES = 4 * 1024 * 1024


def write_array(path: Path, array: NDArray[Any], patch: tuple[int, ...] | None = None) -> None:
    """Write an array atomically; chunks take the proportions of ``patch`` (trailing axes) where it is given."""
    # Two processes may prepare one case; each writes its own, the later one stays.
    partial = path.with_name(f".{os.getpid()}.partial.{path.name}")
    partial.unlink(missing_ok=True)
    shape: dict[str, Any] = {}
    if patch is not None and array.size:
        lead = array.ndim - len(patch)
        shape = {
            "chunks": (1,) * lead + _fit(patch, array.shape[lead:], _CHUNK_BYTES // array.itemsize),
            "blocks": (1,) * lead + _fit(patch, array.shape[lead:], _BLOCK_BYTES // array.itemsize),
        }
    blosc2.asarray(
        np.ascontiguousarray(array),
        urlpath=str(partial),
        mode="w",
        cparams={"codec": blosc2.Codec.LZ4, "clevel": 5, "nthreads": 1},
        **shape,
    )
    partial.replace(path)


def open_array(path: Path) -> Any:
    """Open an array for reading parts of it by slicing.

    Raises
    ------
    ArtefactError
        If the file is missing or damaged.
    """
    try:
        return blosc2.open(str(path), mode="r", dparams={"nthreads": 1})
    except (OSError, RuntimeError, ValueError) as error:
        raise ArtefactError(f"{path}: cannot be opened ({error}); delete it and run preprocessing again") from error


def read_array(path: Path) -> NDArray[Any]:
    """Read a whole array into memory.

    Raises
    ------
    ArtefactError
        If the file is missing or damaged.
    """
    opened = open_array(path)
    try:
        values: NDArray[Any] = opened[...]
    except (OSError, RuntimeError, ValueError) as error:
        raise ArtefactError(f"{path}: cannot be read ({error}); delete it and run preprocessing again") from error
    return values


def _fit(patch: tuple[int, ...], shape: tuple[int, ...], n_elements: int) -> tuple[int, ...]:
    """Box with the patch's proportions, at most ``n_elements`` large and inside ``shape``."""
    box = [min(p, n) for p, n in zip(patch, shape, strict=True)]
    while int(np.prod(box)) > n_elements:
        longest = int(np.argmax([b / p for b, p in zip(box, patch, strict=True)]))
        if box[longest] == 1:
            longest = int(np.argmax(box))
        box[longest] = (box[longest] + 1) // 2
    return tuple(box)
