"""`segpipe plan`: measure a dataset and plan for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from segpipe.core.progress import SILENT, Watch
from segpipe.core.workspace import PathLike
from segpipe.workflows.planning import make_plan
from segpipe.workflows.project import alone_in, fingerprint, workspace_of

if TYPE_CHECKING:
    from segpipe.planning.schema import Plan


def plan(
    dataset: PathLike,
    *,
    work: PathLike | None = None,
    recipe: PathLike = "default",
    budget_gb: float | Literal["auto"] | None = None,
    spacing_mm: tuple[float, float, float] | None = None,
    resample_channels: bool | None = None,
    jobs: int | None = None,
    watch: Watch = SILENT,
) -> Plan:
    """Measure a dataset and plan for it; writes dataset.json, fingerprint.json and plan.json.

    Parameters
    ----------
    dataset : path
        Folder or manifest.
    work : path, optional
        The workspace.
    recipe : str or path
        A shipped recipe's name or a TOML file.
    budget_gb : float or "auto", optional
        Device memory to plan for, instead of the recipe's; ``auto`` takes what is free on the device that training would use.
    spacing_mm : tuple of float, optional
        Target spacing (z, y, x), instead of the planned one.
    resample_channels : bool, optional
        Bring channels on other grids onto the first one's, or refuse them; as the last time unless given, else refuse. Later stages
        and the model do the same.
    jobs : int, optional
        Most worker processes.
    watch : Watch
        Told of progress.
    """
    workspace = workspace_of(dataset, work)
    if budget_gb == "auto":
        from segpipe.execution.device import choose_runtime, free_gb

        budget_gb = free_gb(choose_runtime().device)
        watch.note(f"--budget-gb auto: {budget_gb:.1f} GB")
    with alone_in(workspace, watch):
        measured = fingerprint(dataset, workspace, resample_channels=resample_channels, jobs=jobs, watch=watch)
        return make_plan(measured, workspace, recipe=recipe, budget_gb=budget_gb, spacing_mm=spacing_mm)
