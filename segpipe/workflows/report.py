"""`segpipe report`: write the report page of a workspace."""

from __future__ import annotations

from pathlib import Path

from segpipe.core.progress import SILENT, Watch
from segpipe.core.workspace import Workspace
from segpipe.reporting.run import report as stage
from segpipe.workflows.options import ReportOptions
from segpipe.workflows.page import Page


def report(options: ReportOptions, watch: Watch = SILENT) -> Path:
    """Write the report of a workspace again; returns the page."""
    return stage(Workspace(options.work))


def page(written: Path, _: ReportOptions) -> Page:
    """Show where the page is."""
    return Page({"report": str(written)}, [str(written)])
