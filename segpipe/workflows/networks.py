"""`segpipe networks`: the networks, and what each would cost on a dataset and on this machine."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass

import torch

from segpipe.core.progress import SILENT, Watch
from segpipe.core.text import Table
from segpipe.dataset.fingerprint.schema import Fingerprint
from segpipe.errors import NetworkError, UsageError
from segpipe.execution.device import Runtime
from segpipe.execution.processes import reason_of
from segpipe.networks.build import build_network
from segpipe.networks.catalogue import architecture_of, complete_options, network_names
from segpipe.networks.measure import MemoryProbe, macs, n_parameters, seconds_of
from segpipe.networks.spec import parse_choice
from segpipe.planning.design import Channels
from segpipe.planning.schema import Plan
from segpipe.planning.variant import with_network
from segpipe.workflows.checked import require_configuration, require_device
from segpipe.workflows.options import NetworksOptions
from segpipe.workflows.page import Page
from segpipe.workflows.planning import current_plan
from segpipe.workflows.project import Project

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class NetworkCost:
    """A network in one configuration of a plan."""

    network: str
    patch_size: tuple[int, ...] | None = None
    batch_size: int | None = None
    parameters: int | None = None
    macs: int | None = None
    """Multiply-adds of a forward pass over one patch."""
    memory_gb: float | None = None
    """Memory of a training step, counted on the network itself."""
    step_s: float | None = None
    """Seconds of a training step on this machine; None where it could not be run."""
    problem: str = ""
    """Why there are no numbers."""


def networks(options: NetworksOptions, watch: Watch = SILENT) -> list[NetworkCost]:
    """List the networks; for a dataset with what each costs at the patch and batch that would be planned for it.

    Without names: those that come with segpipe, those of installed packages and MONAI's best known. The workspace's plan is used;
    where there is none, one is made by the recipe that suits the device. Steps are timed on the device.
    """
    chosen = options.names or tuple(network_names())
    if options.dataset is None:
        if options.configuration is not None or options.work is not None:
            raise UsageError("costs are those of a dataset; give DATASET, or leave out --configuration and --work")
        return [named_network(name) for name in chosen]
    # What is wrong with an option is reported before anything is written.
    require_device(options.device)
    project = Project.open(options, watch)
    require_configuration(options.configuration, project.workspace)
    with project.alone():
        base = current_plan(project)
    where = base.configuration(options.configuration or base.default_configuration()).name
    costs = []
    with watch.counting("planning and timing networks", len(chosen)) as done:
        for name in chosen:
            costs.append(network_cost(name, base, project.measured, where, project.runtime))
            done(name)
    return costs


def page(costs: list[NetworkCost], options: NetworksOptions) -> Page:
    """Show the networks, and what each costs."""
    values = [asdict(cost) for cost in costs]
    if options.dataset is not None:
        columns = [
            "network",
            "patch",
            "batch",
            "million parameters",
            "10^9 MACs a patch",
            "GB a step",
            "seconds a step",
        ]
        return Page(
            values, [Table(f"Networks for {options.dataset}", columns, list(map(_cost_row, costs)), (2, 3, 4, 5))]
        )
    wrong = [cost.problem for cost in costs if cost.problem]
    if wrong:
        return Page(values, [], refused=wrong[0])
    about = [architecture_of(parse_choice(cost.network).name) for cost in costs]
    rows = [[a.name, a.about, a.describe_options()] for a in about]
    listed = Table("Networks, and what they may be asked for", ["network", "", "options"], rows)
    return Page(values, [listed, "any other network of MONAI for segmentation: monai:CLASS"])


def _cost_row(cost: NetworkCost) -> list[str]:
    def number(value: float | None, digits: int, unit: float = 1.0) -> str:
        return "" if value is None else f"{value / unit:.{digits}f}"

    return [
        cost.network,
        "x".join(map(str, cost.patch_size or ())),
        number(cost.batch_size, 0),
        number(cost.parameters, 2, 1e6),
        number(cost.macs, 1, 1e9),
        number(cost.memory_gb, 2),
        cost.problem or number(cost.step_s, 2),
    ]


def named_network(name: str) -> NetworkCost:
    """A network by name and options alone, with what is wrong with them."""
    try:
        complete_options(parse_choice(name))
    except NetworkError as error:
        return NetworkCost(name, problem=str(error))
    return NetworkCost(name)


def network_cost(name: str, base: Plan, fingerprint: Fingerprint, configuration: str, runtime: Runtime) -> NetworkCost:
    """Plan, build and time a network; one that fails has the reason in its row, whatever the reason."""
    try:
        with torch.random.fork_rng(devices=[]):
            return _network_cost(name, base, fingerprint, configuration, runtime)
    except Exception as error:  # noqa: BLE001 - the reason is the network's row
        return NetworkCost(name, problem=reason_of(error, f"network {name}"))


def _network_cost(name: str, base: Plan, fingerprint: Fingerprint, configuration: str, runtime: Runtime) -> NetworkCost:
    """Plan a network for one configuration of a plan, build it, and time a step of it.

    Parameters
    ----------
    name : str
        NAME or NAME:key=value,...
    base : Plan
        The workspace's.
    fingerprint : Fingerprint
    configuration : str
    runtime : Runtime
        Where steps are timed.
    """
    measured, channels = MemoryProbe(), Channels.of(fingerprint)
    one = base.model_copy(update={"configurations": {configuration: base.configuration(configuration)}})
    chosen = with_network(one, fingerprint, parse_choice(name), measured).configuration(configuration)
    spec, patch, batch = chosen.network, chosen.patch_size, chosen.batch_size
    network = build_network(spec, channels.inputs, channels.outputs)
    assert base.planner is not None
    need = measured.step_bytes(spec, patch, channels, base.planner.activation_bytes)
    step_s, problem = None, ""
    try:
        step_s = seconds_of(spec, channels.inputs, channels.outputs, patch, batch, runtime)
    except torch.OutOfMemoryError:
        problem = f"a step does not fit {runtime.describe()}"
    return NetworkCost(
        network=name,
        patch_size=patch,
        batch_size=batch,
        parameters=n_parameters(network),
        macs=macs(network, channels.inputs, patch),
        memory_gb=(need.fixed + batch * need.per_sample) / 1e9,
        step_s=step_s,
        problem=problem,
    )
