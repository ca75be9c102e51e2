"""`segpipe check`: check every case of a dataset."""

from __future__ import annotations

from typing import TYPE_CHECKING

from segpipe.core.progress import SILENT, Watch
from segpipe.core.workspace import PathLike
from segpipe.workflows.project import alone_in, workspace_of

if TYPE_CHECKING:
    from segpipe.dataset.run import CheckResult


def check(
    dataset: PathLike,
    *,
    work: PathLike | None = None,
    resample_channels: bool | None = None,
    jobs: int | None = None,
    watch: Watch = SILENT,
) -> CheckResult:
    """Check every case of a dataset against every rule; the decoded cases are kept for the later stages.

    Parameters
    ----------
    dataset : path
        Folder or manifest.
    work : path, optional
        The workspace.
    resample_channels : bool, optional
        Bring channels on other grids onto the first one's, or refuse them; as the last time unless given, else refuse.
    jobs : int, optional
        Most worker processes.
    watch : Watch
        Told of progress.
    """
    from segpipe.dataset.run import check as stage

    workspace = workspace_of(dataset, work)
    with alone_in(workspace, watch), watch.counting("checking", None) as done:
        return stage(dataset, workspace, resample_channels=resample_channels, jobs_limit=jobs, on_case=done)
