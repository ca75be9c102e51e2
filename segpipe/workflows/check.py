"""`segpipe check`: check every case of a dataset."""

from __future__ import annotations

from typing import TYPE_CHECKING

from segpipe.core.progress import SILENT, Watch
from segpipe.workflows.project import Project

if TYPE_CHECKING:
    from segpipe.dataset.run import CheckResult
    from segpipe.workflows.options import CheckOptions


def check(options: CheckOptions, watch: Watch = SILENT) -> CheckResult:
    """Check every case of a dataset by every rule; the decoded cases are kept for the later stages."""
    from segpipe.dataset.run import check as stage

    project = Project.open(options, watch)
    with project.alone(), watch.counting("checking", None) as done:
        return stage(
            options.dataset, project.workspace,
            resample_channels=options.resample_channels, workers=project.workers, on_case=done,
        )  # fmt: skip
