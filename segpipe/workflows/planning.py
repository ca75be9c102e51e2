"""Plans of a workspace: made, read, and varied for another network."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from segpipe.core.progress import Watch
from segpipe.core.workspace import PathLike, Workspace

if TYPE_CHECKING:
    from segpipe.dataset.fingerprint.schema import Fingerprint
    from segpipe.execution.device import Runtime
    from segpipe.execution.processes import Workers
    from segpipe.networks.spec import NetworkChoice
    from segpipe.planning.design import Probe
    from segpipe.planning.recipe import Recipe
    from segpipe.planning.schema import Plan
from segpipe.workflows.project import fingerprint


def recipe_for(runtime: Runtime) -> str:
    """Return the recipe that suits a device, where none is asked for."""
    return "default" if runtime.device.type == "cuda" else "cpu"


def current_plan(
    dataset: PathLike,
    workspace: Workspace,
    jobs: Workers,
    watch: Watch,
    *,
    recipe: str = "default",
    init_from: PathLike | None = None,
) -> Plan:
    """Return the workspace's plan; where there is none, that of the model to begin with, or the recipe's."""
    from segpipe.dataset.fingerprint.schema import Fingerprint
    from segpipe.models.file import is_weights_file, read_model
    from segpipe.planning.run import adopt, read_plan

    fingerprint(dataset, workspace, jobs=jobs, watch=watch)
    if workspace.plan.is_file():
        return read_plan(workspace)
    measured = Fingerprint.read(workspace.fingerprint)
    if init_from is not None and not is_weights_file(Path(init_from)):
        watch.note(f"no plan in {workspace.root} yet: taking over that of {init_from}")
        theirs = read_model(Path(init_from)).single(Path(init_from), "--init-from").plan
        return adopt(Path(init_from), measured, workspace, theirs)
    watch.note(f"no plan in {workspace.root} yet: planning with the {recipe} recipe")
    return make_plan(measured, workspace, recipe=recipe)


def make_plan(
    measured: Fingerprint,
    workspace: Workspace,
    *,
    recipe: PathLike | Recipe,
    budget_gb: float | None = None,
    spacing_mm: tuple[float, float, float] | None = None,
) -> Plan:
    """Plan by a recipe and write plan.json; torch is asked only where the recipe's network has to be measured."""
    from segpipe.planning.recipe import load_recipe
    from segpipe.planning.run import write_plan

    chosen = load_recipe(recipe)
    return write_plan(
        measured,
        workspace,
        recipe=chosen,
        budget_gb=budget_gb,
        spacing_mm=spacing_mm,
        probe=probe_for(chosen.network),
    )


def probe_for(choice: NetworkChoice) -> Probe | None:
    """Return what measures a network; None for a planned U-Net, whose needs are known."""
    from segpipe.networks.catalogue import architecture_of

    if architecture_of(choice.name).layout == "unet":
        return None
    from segpipe.networks.measure import MemoryProbe

    return MemoryProbe()


def plan_for_network(workspace: Workspace, base: Plan, network: str | None, watch: Watch) -> Plan:
    """Return the workspace's plan for another network, made and kept beside it the first time; the plan itself where none is asked for."""
    from segpipe.dataset.fingerprint.schema import Fingerprint
    from segpipe.networks.spec import parse_choice
    from segpipe.planning.run import variant_plan

    if network is None:
        return base
    choice = parse_choice(network)
    probe = probe_for(choice)
    if probe is not None:
        watch.note(f"{choice.name}: planning for its memory, which is measured and can take a minute the first time")
    chosen = variant_plan(base, Fingerprint.read(workspace.fingerprint), choice, workspace, probe)
    for name in base.configurations:
        if name not in chosen.configurations:
            because = next((d.because for d in chosen.decisions if d.rule == name), "its first stage cannot be trained")
            watch.note(f"{choice.name}: no configuration {name}: {because}")
    return chosen


def variant_called(plan: Plan, name: str) -> str:
    """Name of a plan's variant that was given a name of its own."""
    return f"{plan.recipe}~{name}" if "+" in plan.recipe else f"{plan.recipe}+{name}"


def keep_plan_as(workspace: Workspace, plan: Plan, variant: str) -> Plan:
    """Return the plan under another name, kept beside the workspace's: what is trained by it lies apart."""
    named = plan.model_copy(update={"recipe": variant})
    named.write(workspace.plan_of(variant))
    return named


def configuration_of(init_from: PathLike | None, current: Plan) -> str:
    """Return the configuration to train when none is asked for: that of the model to begin with, where the plan has it."""
    from segpipe.models.file import is_weights_file, read_model

    if init_from is not None and Path(init_from).exists() and not is_weights_file(Path(init_from)):
        theirs = read_model(Path(init_from)).configuration
        if theirs in current.configurations:
            return theirs
    return current.default_configuration()
