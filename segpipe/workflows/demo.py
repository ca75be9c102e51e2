"""`segpipe demo`: write the demo dataset."""

from __future__ import annotations

from pathlib import Path

from segpipe.core.progress import SILENT, Watch
from segpipe.core.writable import require_writable
from segpipe.dataset.phantoms import write_phantoms
from segpipe.errors import SegpipeError
from segpipe.workflows.options import DemoOptions
from segpipe.workflows.page import Page


def demo(options: DemoOptions, watch: Watch = SILENT) -> Path:
    """Write the demo dataset, drawn organs in 12 small volumes, into a new folder; returns the folder."""
    target = options.folder
    if target.exists() and any(target.iterdir()):
        raise SegpipeError(f"{target}: is not empty; give a new folder for the demo dataset")
    require_writable(target, "DIR")
    write_phantoms(target)
    return target


def page(folder: Path, _: DemoOptions) -> Page:
    """Show where the dataset is, and what to do with it."""
    return Page({"folder": str(folder)}, [f"demo dataset in {folder}; try: segpipe run {folder} --minutes 1"])
