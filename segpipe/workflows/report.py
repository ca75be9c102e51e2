"""`segpipe report`: write the report page of a workspace."""

from __future__ import annotations

from pathlib import Path

from segpipe.core.workspace import PathLike, Workspace


def report(work: PathLike, *, fold: int | None = None) -> Path:
    """Write the report of a workspace about all folds that were scored, or about one fold; returns the page.

    Parameters
    ----------
    work : path
        A workspace in which ``run`` has finished.
    fold : int, optional
        The fold to report; all that were scored unless given.
    """
    from segpipe.reporting.run import report as stage
    from segpipe.reporting.run import scored_places

    workspace = Workspace(Path(work))
    return stage(workspace, scored_places(workspace, fold))
