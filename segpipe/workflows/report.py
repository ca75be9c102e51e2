"""`segpipe report`: write the report page of a workspace."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from segpipe.core.progress import SILENT, Watch
from segpipe.core.workspace import Workspace

if TYPE_CHECKING:
    from segpipe.workflows.options import ReportOptions


def report(options: ReportOptions, watch: Watch = SILENT) -> Path:
    """Write the report of a workspace again; returns the page."""
    from segpipe.reporting.run import report as stage

    return stage(Workspace(options.work))
