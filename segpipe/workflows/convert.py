"""`segpipe convert`: write DICOM series as NIfTI."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from segpipe.core.progress import SILENT, Watch
from segpipe.core.workspace import PathLike

if TYPE_CHECKING:
    from segpipe.dataset.convert import Converted


def convert(source: PathLike, output: PathLike, *, watch: Watch = SILENT) -> list[Converted]:
    """Write every regular DICOM series of a folder as NIfTI with a sidecar; the others are reported with their reason.

    Parameters
    ----------
    source : path
        Folder of DICOM files, at any depth.
    output : path
        Folder for the NIfTI files and their sidecars.
    watch : Watch
        Told of progress.
    """
    from segpipe.dataset.convert import convert as stage

    with watch.counting("converting", None) as done:
        return stage(Path(source), Path(output), on_series=done)
