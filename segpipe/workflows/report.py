"""`segpipe report`: write the report page of a workspace."""

from __future__ import annotations

from pathlib import Path

from segpipe.core.progress import SILENT, Watch
from segpipe.core.workspace import Workspace
from segpipe.core.writable import require_writable
from segpipe.errors import ArtefactError
from segpipe.reporting.run import report as stage
from segpipe.reporting.run import scored_places
from segpipe.workflows.options import ReportOptions
from segpipe.workflows.page import Page


def report(options: ReportOptions, watch: Watch = SILENT) -> Path:
    """Write the report of a workspace about all folds that were scored, or about one fold; returns the page."""
    workspace = Workspace(options.work)
    if not workspace.root.is_dir():
        raise ArtefactError(
            f"{workspace.root}: no such workspace; give the folder that `segpipe run` was given as --work"
        )
    require_writable(workspace.report.parent)
    return stage(workspace, scored_places(workspace, options.fold))


def page(written: Path, _: ReportOptions) -> Page:
    """Show where the page is."""
    return Page({"report": str(written)}, [str(written)])
