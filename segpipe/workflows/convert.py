"""`segpipe convert`: write DICOM series as NIfTI."""

from __future__ import annotations

from segpipe.core.given import Given
from segpipe.core.progress import SILENT, Watch
from segpipe.core.text import Table
from segpipe.core.writable import require_writable
from segpipe.dataset.convert import Converted
from segpipe.dataset.convert import convert as stage
from segpipe.workflows.options import ConvertOptions
from segpipe.workflows.page import Page, plain


def convert(options: ConvertOptions, watch: Watch = SILENT) -> list[Converted]:
    """Write every regular DICOM series of a folder as NIfTI with a sidecar; the others are reported with their reason."""
    require_writable(options.output, "OUTPUT")
    with watch.counting("converting", None) as done:
        return stage(options.source, options.output, on_series=done, on_given=lambda given: _say(watch, given))


def _say(watch: Watch, given: Given) -> None:
    for line in given.lines():
        watch.note(line)


def page(series: list[Converted], options: ConvertOptions) -> Page:
    """Show which series were written."""
    rows = [
        [s.output.name, "x".join(map(str, s.shape)), " x ".join(f"{v:.4g}" for v in s.spacing_mm)]
        for s in series
        if s.output and s.shape and s.spacing_mm
    ]
    written = Table(
        f"{len(rows)} of {len(series)} volume(s), in {options.output}", ["file", "shape (z, y, x)", "mm"], rows
    )
    noted = [[s.series, note] for s in series for note in s.notes]
    notes = [Table("What is odd about them, or was assumed", ["volume", "note"], noted)] if noted else []
    failed = {s.series: s.reason for s in series if s.reason}
    return Page([plain(s) for s in series], [written, *notes], failed, "Series that were refused")
