"""`segpipe plan`: measure a dataset and plan for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from segpipe.core.progress import SILENT, Watch
from segpipe.workflows.planning import make_plan, recipe_for
from segpipe.workflows.project import Project

if TYPE_CHECKING:
    from segpipe.core.workspace import Workspace
    from segpipe.dataset.fingerprint.schema import Fingerprint
    from segpipe.planning.schema import Plan
    from segpipe.workflows.options import PlanOptions


@dataclass(frozen=True)
class Planned:
    """What `segpipe plan` made, and of what."""

    plan: Plan
    measured: Fingerprint
    workspace: Workspace


def plan(options: PlanOptions, watch: Watch = SILENT) -> Planned:
    """Measure a dataset and plan for it; writes dataset.json, fingerprint.json and plan.json."""
    project, budget_gb = Project.open(options, watch), options.budget_gb
    if budget_gb == "auto":
        from segpipe.execution.device import free_gb

        budget_gb = free_gb(project.runtime.device)
        watch.note(f"--budget-gb auto: {budget_gb:.1f} GB")
    with project.alone():
        measured = project.measure(resample_channels=options.resample_channels)
        recipe = recipe_for(project, options.recipe)
        made = make_plan(project, recipe, budget_gb=budget_gb, spacing_mm=options.spacing_mm)
    return Planned(made, measured, project.workspace)


def plan_only(options: PlanOptions, watch: Watch = SILENT) -> Plan:
    """Measure a dataset and plan for it; writes dataset.json, fingerprint.json and plan.json."""
    return plan(options, watch).plan
