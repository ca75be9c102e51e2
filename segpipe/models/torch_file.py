"""Files that torch.save wrote: a zip, whose checksums torch itself does not compare."""

import zipfile
from pathlib import Path
from typing import Any

import torch


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
    Exception
        Many kinds, from torch, where the file is cut short or holds other things.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            # A bit that flips in the list of members may tell of a password, or of another compression.
            try:
                damaged = archive.testzip()
            except (RuntimeError, NotImplementedError, ValueError, OverflowError) as error:
                raise zipfile.BadZipFile(str(error)) from error
        if damaged is not None:
            raise zipfile.BadZipFile(f"damaged: the checksum of {damaged} does not fit its content")
    return torch.load(path, map_location="cpu", weights_only=True)
