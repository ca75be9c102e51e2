"""Whether the voxels that headers announce fit into memory: known before they are read."""

from collections.abc import Collection
from contextlib import suppress
from math import prod
from pathlib import Path

from segpipe.core.text import rounded
from segpipe.errors import NoRoomError, UnreadableFileError
from segpipe.execution.memory import USABLE, free_bytes
from segpipe.io.formats import read_header


def require_room_to_read(images: Collection[Path], free: int | None = None) -> None:
    """Raise unless the voxels that the headers of a case's images announce fit into the free memory.

    Folders of DICOM files are not looked at: their voxels are read file by file. A header that cannot be read is the reader's to refuse.

    Parameters
    ----------
    images : collection of Path
        Files of the case.
    free : int, optional
        Bytes that may be taken; measured unless given.

    Raises
    ------
    NoRoomError
        With the shape and the memory.
    """
    free, needed, shapes = free_bytes() if free is None else free, 0, []
    for image in images:
        with suppress(UnreadableFileError):
            if not image.is_dir():
                header = read_header(image)
                shapes.append(f"{image.name} {'x'.join(map(str, header.grid.shape))}")
                needed += 4 * header.n_channels * prod(header.grid.shape)
    if needed > USABLE * free:
        raise NoRoomError(
            f"out of memory: {', '.join(shapes)} voxels take {rounded(needed / 1e9)} GB of {rounded(free / 1e9)} GB free to be read; "
            "check the header's sizes, or use a machine with more memory"
        )
