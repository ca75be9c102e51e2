"""`segpipe report`: write the report page of a workspace."""

from __future__ import annotations

from pathlib import Path

from segpipe.core.workspace import PathLike, Workspace


def report(work: PathLike) -> Path:
    """Write the report of a workspace from its latest evaluation; returns the page.

    Parameters
    ----------
    work : path
        A workspace in which ``run`` has finished.
    """
    from segpipe.reporting.run import report as stage

    return stage(Workspace(Path(work)))
