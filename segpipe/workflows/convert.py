"""`segpipe convert`: write DICOM series as NIfTI."""

from __future__ import annotations

from typing import TYPE_CHECKING

from segpipe.core.progress import SILENT, Watch

if TYPE_CHECKING:
    from segpipe.dataset.convert import Converted
    from segpipe.workflows.options import ConvertOptions


def convert(options: ConvertOptions, watch: Watch = SILENT) -> list[Converted]:
    """Write every regular DICOM series of a folder as NIfTI with a sidecar; the others are reported with their reason."""
    from segpipe.dataset.convert import convert as stage

    with watch.counting("converting", None) as done:
        return stage(options.source, options.output, on_series=done)
