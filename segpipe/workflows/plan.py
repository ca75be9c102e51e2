"""`segpipe plan`: measure a dataset and plan for it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from segpipe.core.progress import SILENT, Watch
from segpipe.core.regular import lies
from segpipe.core.workspace import Workspace
from segpipe.dataset.fingerprint.schema import Fingerprint
from segpipe.errors import ArtefactError
from segpipe.planning.schema import Plan
from segpipe.reporting.plan import plan_parts
from segpipe.workflows.checked import require_recipe
from segpipe.workflows.options import PlanOptions
from segpipe.workflows.page import Page, plain
from segpipe.workflows.planning import make_plan, recipe_for
from segpipe.workflows.project import Project


@dataclass(frozen=True)
class Planned:
    """What `segpipe plan` made, and of what."""

    plan: Plan
    measured: Fingerprint
    workspace: Workspace


def plan(options: PlanOptions, watch: Watch = SILENT) -> Planned:
    """Measure a dataset and plan for it; writes dataset.json, fingerprint.json and plan.json."""
    require_recipe(options.recipe)
    project, budget_gb = Project.open(options, watch), options.budget_gb
    if budget_gb == "auto":
        from segpipe.execution.device import free_gb

        budget_gb = free_gb(project.runtime.device)
        watch.note(f"--budget-gb auto: {budget_gb:.1f} GB")
    with project.alone():
        measured = project.measure(resample_channels=options.resample_channels)
        recipe = recipe_for(project, options.recipe)
        before = _digest(project.workspace.plan)
        made = make_plan(project, recipe, budget_gb=budget_gb, spacing_mm=options.spacing_mm)
        if before not in ("", made.digest()):
            watch.note(f"{project.workspace.plan}: replaced; the one before is {project.workspace.previous_plan}")
    return Planned(made, measured, project.workspace)


def _digest(path: Path) -> str:
    """Return the digest of the plan that is there; empty where there is none, in words where it cannot be read."""
    try:
        return Plan.read(path).digest() if lies(path) else ""
    except ArtefactError:
        return "another"


def plan_only(options: PlanOptions, watch: Watch = SILENT) -> Plan:
    """Measure a dataset and plan for it; writes dataset.json, fingerprint.json and plan.json."""
    return plan(options, watch).plan


def page(done: Planned, options: PlanOptions) -> Page:
    """Show what was measured, what was chosen, and why; with --explain how each rule came to it."""
    parts = plan_parts(done.measured, done.plan, explain=options.explain)
    where = [f"plan         {done.workspace.plan}", f"fingerprint  {done.workspace.fingerprint}"]
    return Page(plain(done.plan), [*parts, *where], done.measured.left_out, "Cases left out")
