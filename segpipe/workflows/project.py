"""A dataset and its workspace, as every command opens them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from segpipe.core.progress import SILENT, Watch
from segpipe.core.workspace import PathLike, Workspace
from segpipe.errors import SegpipeError

if TYPE_CHECKING:
    from segpipe.dataset.fingerprint.schema import Fingerprint
    from segpipe.dataset.splits import Splits
    from segpipe.execution.processes import Workers


def workspace_of(dataset: PathLike, work: PathLike | None) -> Workspace:
    """Return the workspace of a dataset.

    Raises
    ------
    SegpipeError
        If it would lie in the dataset's own folder, where nothing may be written.
    """
    source = Path(dataset).resolve()
    folder = source if source.is_dir() else source.parent
    if work is None:
        from segpipe.dataset.match import match_dataset

        name = re.sub(r"[^\w.-]+", "_", match_dataset(source).name).strip(".") or folder.name
        work = Path("runs") / name
    if source.is_dir() and Path(work).resolve().is_relative_to(folder):
        raise SegpipeError(f"workspace {work}: lies in the dataset's own folder {folder}; give another with --work")
    if Path(work).resolve() == folder:
        raise SegpipeError(f"workspace {work}: is the folder of the manifest; give another with --work")
    return Workspace(Path(work))


def fingerprint(
    dataset: PathLike,
    workspace: Workspace,
    *,
    resample_channels: bool | None = None,
    jobs: Workers = None,
    watch: Watch = SILENT,
) -> Fingerprint:
    """Check and measure a dataset; writes dataset.json, fingerprint.json and the decoded cases."""
    from segpipe.dataset.fingerprint.run import fingerprint as stage

    with watch.counting("checking and measuring", None) as done:
        return stage(dataset, workspace, resample_channels=resample_channels, jobs_limit=jobs, on_case=done)


@contextmanager
def alone_in(workspace: Workspace, watch: Watch) -> Iterator[None]:
    """Prepare a workspace while nobody else does: two folds may be started at the same time, the second then finds all done."""
    from segpipe.execution.locks import locked

    with locked(workspace.root, wait=True, note=watch.note):
        yield


def splits_of(workspace: Workspace, measured: Fingerprint) -> Splits:
    """Splits of the fingerprint's cases, made when they are not there."""
    from segpipe.dataset.splits import read_or_make

    return read_or_make(workspace.splits, measured.groups, measured.digest())
