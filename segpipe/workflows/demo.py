"""`segpipe demo`: write the demo dataset."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from segpipe.core.progress import SILENT, Watch
from segpipe.errors import SegpipeError

if TYPE_CHECKING:
    from segpipe.workflows.options import DemoOptions


def demo(options: DemoOptions, watch: Watch = SILENT) -> Path:
    """Write the demo dataset, drawn organs in 12 small volumes, into a new folder; returns the folder."""
    from segpipe.dataset.phantoms import write_phantoms

    target = options.folder
    if target.exists() and any(target.iterdir()):
        raise SegpipeError(f"{target}: is not empty; give a new folder for the demo dataset")
    write_phantoms(target)
    return target
