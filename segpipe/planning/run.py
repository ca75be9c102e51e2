"""The stage: fingerprint and recipe in, plan.json out."""

from pathlib import Path

from segpipe.core.regular import lies, read_bytes
from segpipe.core.whole import write_atomically
from segpipe.core.workspace import Workspace
from segpipe.dataset.fingerprint.schema import Fingerprint
from segpipe.errors import ArtefactError
from segpipe.networks.catalogue import architecture_of
from segpipe.networks.spec import NetworkChoice
from segpipe.planning.adopt import adopt_plan
from segpipe.planning.design import Probe
from segpipe.planning.make import make_plan
from segpipe.planning.recipe import Recipe, load_recipe
from segpipe.planning.schema import Plan
from segpipe.planning.variant import variant_name, with_network


def write_plan(
    fingerprint: Fingerprint,
    workspace: Workspace,
    *,
    recipe: str | Path | Recipe = "default",
    budget_gb: float | None = None,
    spacing_mm: tuple[float, float, float] | None = None,
    probe: Probe | None = None,
) -> Plan:
    """Plan and write plan.json.

    Parameters
    ----------
    fingerprint : Fingerprint
        Measurements.
    workspace : Workspace
        Where to write.
    recipe : str, Path or Recipe
        The recipe.
    budget_gb : float, optional
        Device memory to plan for, instead of the recipe's.
    spacing_mm : tuple of float, optional
        Target spacing (z, y, x) instead of the planned one.
    probe : Probe, optional
        Measures the recipe's network, where it is no planned U-Net.
    """
    chosen = load_recipe(recipe)
    if budget_gb is not None:
        budgets = {"budget_gb": budget_gb}
        if chosen.planner.measured_budget_gb is not None:
            budgets["measured_budget_gb"] = budget_gb
        settings = chosen.planner.model_copy(update=budgets)
        chosen = Recipe.model_validate(chosen.model_dump() | {"planner": settings.model_dump()})
    plan = make_plan(fingerprint, chosen, spacing_mm=spacing_mm, probe=probe)
    _replace(workspace, plan)
    return plan


def _replace(workspace: Workspace, plan: Plan) -> None:
    """Write plan.json; another plan that was there is kept as plan.previous.json."""
    if lies(workspace.plan):
        before = read_bytes(workspace.plan)
        try:
            same = Plan.read(workspace.plan).digest() == plan.digest()
        except ArtefactError:
            same = False
        if not same:
            write_atomically(workspace.previous_plan, before)
    plan.write(workspace.plan)


def variant_plan(
    base: Plan, fingerprint: Fingerprint, choice: NetworkChoice, workspace: Workspace, probe: Probe | None
) -> Plan:
    """Return the plan for another network, written to plans/ the first time and whenever the workspace's plan has changed since."""
    path = workspace.plan_of(variant_name(base, choice))
    package = architecture_of(choice.name).package
    if lies(path):
        known = Plan.read(path)
        same = all(c.network.package == package for c in known.configurations.values())
        if known.derived_from == base.digest() and known.asked_network == choice and same:
            return known
    plan = with_network(base, fingerprint, choice, probe)
    plan.write(path)
    return plan


def adopt(model: Path, fingerprint: Fingerprint, workspace: Workspace, theirs: Plan) -> Plan:
    """Take over a model's plan and write plan.json."""
    plan = adopt_plan(theirs, fingerprint, model)
    _replace(workspace, plan)
    return plan


def read_plan(workspace: Workspace, fingerprint: Fingerprint) -> Plan:
    """Read plan.json and make sure that it was made from this fingerprint.

    Raises
    ------
    ArtefactError
        If it is missing, or older than the fingerprint.
    """
    plan = Plan.read(workspace.plan)
    if plan.fingerprint_digest != fingerprint.digest():
        raise ArtefactError(
            f"{workspace.plan}: was made from another fingerprint (the dataset changed since); run `segpipe plan` again"
        )
    return plan
