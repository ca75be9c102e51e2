"""Plans of a workspace: made, read, and varied for another network."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from segpipe.core.regular import lies
from segpipe.execution.accelerator import expected_gpu
from segpipe.workflows.project import Project

if TYPE_CHECKING:
    from segpipe.networks.spec import NetworkChoice
    from segpipe.planning.design import Probe
    from segpipe.planning.recipe import Recipe
    from segpipe.planning.schema import Plan


def recipe_for(project: Project, asked: str | None = None) -> str:
    """Return the recipe that is asked for, else the one that suits the device, and report it. Torch is not needed for that."""
    if asked is not None:
        return asked
    name = recipe_for_device(project.device)
    why = "no GPU: the recipe for CPUs" if name == "cpu" else "a GPU is there"
    project.watch.note(f"recipe {name} ({why})")
    return name


def recipe_for_device(device: str) -> str:
    """Return the recipe that suits a device, which may be "auto"."""
    gpu = device.startswith("cuda") if device != "auto" else expected_gpu()
    return "default" if gpu else "cpu"


def compare_with_recipe(project: Project, recipe: str, instead: str) -> None:
    """Report where torch finds another kind of device than the one that a recipe was taken for; ``instead`` says how to ask for another."""
    on_gpu = project.runtime.device.type == "cuda"
    if project.device == "auto" and recipe.partition("+")[0] == ("cpu" if on_gpu else "default"):
        found, other = ("a GPU is there", "default") if on_gpu else ("torch finds no GPU", "cpu")
        project.watch.note(f"recipe {recipe}, and {found}; {instead.format(other)} suits it")


def current_plan(project: Project, *, init_from: Path | None = None) -> Plan:
    """Return the workspace's plan; where there is none, that of the model to begin with, or one by the recipe for the device."""
    from segpipe.models.file import is_weights_file, read_model
    from segpipe.planning.run import adopt, read_plan

    measured, workspace = project.measure(), project.workspace
    if lies(workspace.plan):
        return read_plan(workspace, measured)
    if init_from is not None and not is_weights_file(init_from):
        project.watch.note(f"no plan in {workspace.root} yet: taking over that of {init_from}")
        theirs = read_model(init_from).single(init_from, "--init-from").plan
        return adopt(init_from, measured, workspace, theirs)
    project.watch.note(f"no plan in {workspace.root} yet: making one")
    return make_plan(project, recipe_for(project))


def plan_to_run(project: Project, recipe: str | None) -> Plan:
    """Return the plan of `segpipe run`: the workspace's where it fits the dataset and no recipe is asked for, else one by the recipe.

    A plan that is replaced is kept, and that is reported.
    """
    from segpipe.planning.schema import Plan

    workspace, note = project.workspace, project.watch.note
    known = Plan.read(workspace.plan) if lies(workspace.plan) else None
    fits = known is not None and known.fingerprint_digest == project.measured.digest()
    if known is not None and fits and recipe is None:
        note(f"{workspace.plan}: kept (recipe {known.recipe}); give --recipe to plan again")
        return known
    made = make_plan(project, recipe_for(project, recipe))
    if known is not None and known.digest() != made.digest():
        why = "a recipe was asked for" if fits else "the dataset changed since it was made"
        note(f"{workspace.plan}: replaced, since {why}; the one before is {workspace.previous_plan}")
    return made


def make_plan(project: Project, recipe: str | Recipe, **choices: Any) -> Plan:
    """Plan by a recipe and write plan.json; torch is asked only where the recipe's network has to be measured.

    Parameters
    ----------
    project : Project
    recipe : str or Recipe
    **choices
        ``budget_gb`` and ``spacing_mm``, as :func:`segpipe.planning.run.write_plan` takes them.
    """
    from segpipe.planning.recipe import load_recipe
    from segpipe.planning.run import write_plan

    chosen = load_recipe(recipe)
    return write_plan(project.measured, project.workspace, recipe=chosen, probe=probe_for(chosen.network), **choices)


def probe_for(choice: NetworkChoice) -> Probe | None:
    """Return what measures a network; None for a planned U-Net, whose needs are known."""
    from segpipe.networks.catalogue import architecture_of

    if architecture_of(choice.name).layout == "unet":
        return None
    from segpipe.networks.measure import MemoryProbe

    return MemoryProbe()


def plan_for_network(project: Project, base: Plan, network: str | None) -> Plan:
    """Return the plan for another network, made and kept beside the workspace's the first time; the plan itself where none is asked for."""
    from segpipe.networks.spec import parse_choice
    from segpipe.planning.run import variant_plan

    if network is None:
        return base
    choice, note = parse_choice(network), project.watch.note
    probe = probe_for(choice)
    if probe is not None:
        note(f"{choice.name}: planning for its memory, which is measured and can take a minute the first time")
    chosen = variant_plan(base, project.measured, choice, project.workspace, probe)
    for name in base.configurations:
        if name not in chosen.configurations:
            because = next((d.because for d in chosen.decisions if d.rule == name), "its first stage cannot be trained")
            note(f"{choice.name}: no configuration {name}: {because}")
    return chosen


def variant_called(plan: Plan, name: str) -> str:
    """Return the name of a plan's variant that was given a name of its own."""
    return f"{plan.recipe}~{name}" if "+" in plan.recipe else f"{plan.recipe}+{name}"


def keep_plan_as(project: Project, plan: Plan, variant: str) -> Plan:
    """Return the plan under another name, kept beside the workspace's: what is trained by it lies apart."""
    named = plan.model_copy(update={"recipe": variant})
    named.write(project.workspace.plan_of(variant))
    return named


def configuration_of(init_from: Path | None, current: Plan) -> str:
    """Return the configuration to train when none is asked for: that of the model to begin with, where the plan has it."""
    from segpipe.models.file import is_weights_file, read_model

    if init_from is not None and init_from.exists() and not is_weights_file(init_from):
        theirs = read_model(init_from).configuration
        if theirs in current.configurations:
            return theirs
    return current.default_configuration()
