"""`segpipe preprocess`: prepare the arrays of one configuration."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from segpipe.core.progress import SILENT, Watch
from segpipe.core.workspace import PathLike, Workspace
from segpipe.workflows.fold import prepare_arrays
from segpipe.workflows.planning import current_plan
from segpipe.workflows.project import alone_in, workspace_of

if TYPE_CHECKING:
    from segpipe.execution.processes import Workers
    from segpipe.preprocessing.schema import PreprocessedIndex


def preprocess(
    dataset: PathLike,
    *,
    work: PathLike | None = None,
    configuration: str | None = None,
    cluster: str | None = None,
    jobs: int | None = None,
    watch: Watch = SILENT,
) -> PreprocessedIndex:
    """Prepare the dataset's usable cases for one configuration; what is prepared already is kept.

    Parameters
    ----------
    dataset : path
        Folder or manifest.
    work : path, optional
        The workspace; its plan is used, or the default plan is made.
    configuration : str, optional
        The plan's 3d_fullres (2d where there is none) unless given.
    cluster : str, optional
        Address of a Dask scheduler, or ``slurm``: its workers read and prepare the cases; all see the same files under the same paths.
    jobs : int, optional
        Most worker processes; of SLURM, workers that are asked for.
    watch : Watch
        Told of progress.
    """
    workspace = workspace_of(dataset, work)
    with ExitStack() as opened:
        workers: Workers = jobs
        if cluster is not None:
            from segpipe.execution.processes import open_executor

            workers = opened.enter_context(open_executor(cluster, jobs or 1))
            workspace, dataset = Workspace(workspace.root.resolve()), Path(dataset).resolve()
        opened.enter_context(alone_in(workspace, watch))
        current = current_plan(dataset, workspace, workers, watch)
        return prepare_arrays(workspace, current, configuration or current.default_configuration(), workers, watch)
