"""Files that torch.save wrote: a zip, whose checksums torch itself does not compare."""

import zipfile
from pathlib import Path
from typing import Any

import torch

from segpipe.core.regular import regular
from segpipe.execution.memory import require_room_for


def load_tested(path: Path) -> Any:
    """Load what torch.save wrote, without executing anything, after the checksum of each member was compared.

    Files of torch older than 1.6 are no zips and hold no checksum: these are loaded as they are.

    Parameters
    ----------
    path : Path

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    zipfile.BadZipFile
        If a member is damaged.
    NoRoomError
        If its members would not fit into the free memory.
    Exception
        Many kinds, from torch, where the file is cut short or holds other things.
    """
    if zipfile.is_zipfile(regular(path)):
        with zipfile.ZipFile(regular(path)) as archive:
            require_room_for_members(path, archive)
            # A bit that flips in the list of members may tell of a password, or of another compression.
            try:
                damaged = archive.testzip()
            except (RuntimeError, NotImplementedError, ValueError, OverflowError) as error:
                raise zipfile.BadZipFile(str(error)) from error
        if damaged is not None:
            raise zipfile.BadZipFile(f"damaged: the checksum of {damaged} does not fit its content")
    else:
        require_room_for(path, path.stat().st_size)
    return torch.load(regular(path), map_location="cpu", weights_only=True)


def require_room_for_members(path: Path, archive: zipfile.ZipFile) -> None:
    """Raise unless what a zip unpacks to fits into the free memory: a small file may hold a thousand times its size.

    Raises
    ------
    NoRoomError
        With both sizes.
    """
    # No member is unpacked beyond the size that the list of members states.
    require_room_for(path, sum(member.file_size for member in archive.infolist()))
