"""A plan with another network: the same data, and patches and batches that suit the network. Pure but for the probe."""

from dataclasses import replace
from math import prod

from segpipe.dataset.fingerprint.schema import Fingerprint
from segpipe.errors import NetworkError, PlanError
from segpipe.networks.catalogue import PLANNED, complete_options
from segpipe.networks.spec import NetworkChoice
from segpipe.planning.configuration import size_configuration
from segpipe.planning.design import Channels, Design, Probe
from segpipe.planning.explain import sizing_decisions
from segpipe.planning.schema import Configuration, Decision, Plan


def variant_name(plan: Plan, choice: NetworkChoice) -> str:
    """Name of a plan's variant with another network, which names its folder."""
    return f"{plan.recipe}+{choice.slug}"


def with_network(plan: Plan, fingerprint: Fingerprint, choice: NetworkChoice, probe: Probe | None) -> Plan:
    """Return the plan for another network; spacings, and so the prepared arrays, stay.

    A configuration that the network cannot be trained in (a 2D network in 3D, say) is left out, with the reason.

    Raises
    ------
    NetworkError
        If the network is not known or an option is wrong.
    PlanError
        If no configuration is left, or the plan does not say how it was sized.
    """
    if choice.name == PLANNED:
        return _narrowed(plan, choice)
    if plan.planner is None:
        raise PlanError("--network: the plan does not say for which budget it was made; run `segpipe plan` again")
    channels = Channels.of(fingerprint)
    finest = plan.configurations.get("3d_fullres", plan.configuration(plan.default_configuration()))
    voxels = prod(finest.median_shape) * fingerprint.n_training_cases
    configurations: dict[str, Configuration] = {}
    decisions: list[Decision] = [
        Decision(
            rule="network",
            chosen=choice.name,
            because=f"it was asked for; all else is the plan of recipe {plan.recipe}",
        )
    ]
    problems = {}
    for name, theirs in plan.configurations.items():
        if theirs.previous_stage is not None:
            continue
        design = Design(choice, plan.planner, channels, theirs.spacing_mm, probe)
        seen = prod(theirs.median_shape) * fingerprint.n_training_cases if name == "3d_lowres" else voxels
        try:
            sized = size_configuration(theirs.median_shape, seen, design)
        except (NetworkError, PlanError) as error:
            problems[name] = str(error)
            decisions.append(Decision(rule=name, chosen="none", because=str(error)))
            continue
        decisions += sizing_decisions(name, theirs.median_shape, sized, design)
        configurations[name] = theirs.model_copy(
            update={
                "patch_size": sized.topology.patch_size,
                "batch_size": sized.batch_size,
                "network": sized.network,
                "estimated_memory_gb": sized.memory_gb,
            }
        )
    if not configurations:
        raise PlanError(next(iter(problems.values())))
    for name, theirs in plan.configurations.items():
        if theirs.previous_stage in configurations and "3d_fullres" in configurations:
            cascade = configurations["3d_fullres"].model_copy(
                update={"name": name, "previous_stage": theirs.previous_stage}
            )
            more = replace(channels, inputs=channels.inputs + len(fingerprint.labels.values) - 1)
            problem = probe.problem(cascade.network, cascade.patch_size, more) if probe else None
            if problem is None:
                configurations[name] = cascade
            else:
                decisions.append(
                    Decision(rule=name, chosen="none", because=f"with the first stage's labels: {problem}")
                )
    return _derived(plan, choice, configurations, decisions)


def _narrowed(plan: Plan, choice: NetworkChoice) -> Plan:
    """The plan with its own U-Nets at another width or with another norm: what they are trained on stays as it is."""
    options = complete_options(choice)
    width, multiple = float(options["width"]), int(options["multiple"])  # type: ignore[arg-type]
    configurations, decisions = {}, []
    for name, theirs in plan.configurations.items():
        spec = theirs.network
        if not spec.features:
            raise NetworkError(
                f"network {PLANNED}: the plan's network is {spec.architecture}, whose width the plan does not set; give one of "
                f"`segpipe networks` by name, such as {spec.architecture}:width=0.25"
            )
        features = tuple(multiple * max(round(width * f / multiple), 1) for f in spec.features)
        norm = options["norm"] or spec.norm
        network = spec.model_copy(update={"features": features, "options": {**spec.options, "norm": norm}})
        configurations[name] = theirs.model_copy(update={"network": network})
        because = f"{width:g} times {spec.features[0]} to {spec.features[-1]}, in multiples of {multiple}"
        decisions.append(
            Decision(
                rule=f"{name}: network",
                chosen=f"{features[0]} to {features[-1]} features, norm {norm}",
                because=because,
            )
        )
    return _derived(plan, choice, configurations, decisions)


def _derived(
    plan: Plan, choice: NetworkChoice, configurations: dict[str, Configuration], decisions: list[Decision]
) -> Plan:
    return plan.model_copy(
        update={
            "recipe": variant_name(plan, choice),
            "planner_preset": variant_name(plan, choice),
            "derived_from": plan.digest(),
            "asked_network": choice,
            "configurations": configurations,
            "decisions": (*plan.decisions, *decisions),
        }
    )
