"""Preprocessed arrays as blosc2: compressed, and chunked so that a patch is read without the rest.

blosc2 compares no checksums: the sha256 of a file is kept in the record beside it, and compared when the file is opened.
"""

from hashlib import file_digest
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
from numpy.typing import NDArray

from segpipe.core.regular import open_regular, regular
from segpipe.core.whole import sweep, whole
from segpipe.errors import ArtefactError

# One block is what is decompressed at the least: near a core's second-level cache.
_BLOCK_BYTES = 256 * 1024
_CHUNK_BYTES = 4 * 1024 * 1024


def write_array(path: Path, array: NDArray[Any], patch: tuple[int, ...] | None = None) -> str:
    """Write an array atomically and return the sha256 of the file.

    Chunks take the proportions of ``patch`` (trailing axes) where it is given.

    Raises
    ------
    OSError
        With the name of the file.
    """
    shape: dict[str, Any] = {}
    if patch is not None and array.size:
        lead = array.ndim - len(patch)
        shape = {
            "chunks": (1,) * lead + _fit(patch, array.shape[lead:], _CHUNK_BYTES // array.itemsize),
            "blocks": (1,) * lead + _fit(patch, array.shape[lead:], _BLOCK_BYTES // array.itemsize),
        }
    sweep(path.parent, path.name)
    # Two processes may prepare one case; each writes its own, the later one stays.
    with whole(path) as partial:
        blosc2.asarray(
            np.ascontiguousarray(array),
            urlpath=str(partial),
            mode="w",
            cparams={"codec": blosc2.Codec.LZ4, "clevel": 5, "nthreads": 1},
            **shape,
        )
        return _sha256(partial)


def open_array(path: Path, sha256: str | None = None) -> Any:
    """Open an array for reading parts of it by slicing.

    Parameters
    ----------
    path : Path
    sha256 : str, optional
        What the file must have; None where an older version wrote it and kept no digest.

    Raises
    ------
    ArtefactError
        If the file is missing, damaged, or another one.
    """
    require_sha256(path, sha256)
    try:
        return blosc2.open(str(regular(path)), mode="r", dparams={"nthreads": 1})
    except (OSError, RuntimeError, ValueError) as error:
        raise ArtefactError(f"{path}: cannot be opened ({error}); delete it and run preprocessing again") from error


def read_array(path: Path, sha256: str | None = None) -> NDArray[Any]:
    """Read a whole array into memory; the parameters are those of :func:`open_array`.

    Raises
    ------
    ArtefactError
        If the file is missing, damaged, or another one.
    """
    opened = open_array(path, sha256)
    try:
        values: NDArray[Any] = opened[...]
    except (OSError, RuntimeError, ValueError) as error:
        raise ArtefactError(f"{path}: cannot be read ({error}); delete it and run preprocessing again") from error
    return values


def require_sha256(path: Path, sha256: str | None) -> None:
    """Raise if a file does not have the digest that its record keeps; None is no digest.

    Raises
    ------
    ArtefactError
    """
    if sha256 is None:
        return
    try:
        found = _sha256(path)
    except OSError as error:
        raise ArtefactError(f"{path}: cannot be read ({error.strerror})") from error
    if found != sha256:
        raise ArtefactError(
            f"{path}: the file is damaged, or another one: its sha256 is {found[:12]}..., its record says {sha256[:12]}..."
        )


def _sha256(path: Path) -> str:
    with open_regular(path) as file:
        return file_digest(file, "sha256").hexdigest()


def _fit(patch: tuple[int, ...], shape: tuple[int, ...], n_elements: int) -> tuple[int, ...]:
    """Box with the patch's proportions, at most ``n_elements`` large and inside ``shape``."""
    box = [min(p, n) for p, n in zip(patch, shape, strict=True)]
    while int(np.prod(box)) > n_elements:
        longest = int(np.argmax([b / p for b, p in zip(box, patch, strict=True)]))
        if box[longest] == 1:
            longest = int(np.argmax(box))
        box[longest] = (box[longest] + 1) // 2
    return tuple(box)
