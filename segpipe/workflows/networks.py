"""`segpipe networks`: the networks, and what each would cost on a dataset and on this machine."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from segpipe.core.progress import SILENT, Watch
from segpipe.core.workspace import PathLike
from segpipe.workflows.planning import current_plan, recipe_for
from segpipe.workflows.project import alone_in, workspace_of

if TYPE_CHECKING:
    from segpipe.planning.schema import Plan


from segpipe.errors import NetworkError, PlanError

if TYPE_CHECKING:
    from segpipe.dataset.fingerprint.schema import Fingerprint
    from segpipe.execution.device import Runtime
    from segpipe.planning.schema import Plan


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
    """Of a training step, counted on the network itself."""
    step_s: float | None = None
    """Of a training step on this machine; None where it could not be run."""
    problem: str = ""
    """Why there are no numbers."""


def list_networks(
    dataset: PathLike | None = None,
    *,
    names: tuple[str, ...] = (),
    work: PathLike | None = None,
    configuration: str | None = None,
    device: str = "auto",
    jobs: int | None = None,
    watch: Watch = SILENT,
) -> list[NetworkCost]:
    """List the networks; for a dataset with what each costs at the patch and batch that would be planned for it.

    Parameters
    ----------
    dataset : path, optional
        Folder or manifest. Without one, names only.
    names : tuple of str
        NAME or NAME:key=value,...; those that come with segpipe, those of installed packages and MONAI's best known unless given.
    work : path, optional
        The workspace; its plan is used, or one is made by the recipe that suits the device.
    configuration : str, optional
        The plan's 3d_fullres (2d where there is none) unless given.
    device : str
        Where steps are timed.
    jobs : int, optional
        Most worker processes.
    watch : Watch
        Told of progress.
    """
    from segpipe.networks.catalogue import network_names

    chosen = names or tuple(network_names())
    if dataset is None:
        return [named_network(name) for name in chosen]
    from segpipe.dataset.fingerprint.schema import Fingerprint
    from segpipe.execution.device import choose_runtime

    runtime, workspace = choose_runtime(device), workspace_of(dataset, work)
    with alone_in(workspace, watch):
        base = current_plan(dataset, workspace, jobs, watch, recipe=recipe_for(runtime))
    where, measured = configuration or base.default_configuration(), Fingerprint.read(workspace.fingerprint)
    base.configuration(where)
    costs = []
    with watch.counting("planning and timing networks", len(chosen)) as done:
        for name in chosen:
            costs.append(network_cost(name, base, measured, where, runtime))
            done(name)
    return costs


def named_network(name: str) -> NetworkCost:
    """A network by name and options alone, with what is wrong with them."""
    from segpipe.networks.catalogue import complete_options
    from segpipe.networks.spec import parse_choice

    try:
        complete_options(parse_choice(name))
    except NetworkError as error:
        return NetworkCost(name, problem=str(error))
    return NetworkCost(name)


def network_cost(name: str, base: Plan, fingerprint: Fingerprint, configuration: str, runtime: Runtime) -> NetworkCost:
    """Plan, build and time a network; one that fails is told in its row, whatever the reason."""
    try:
        return _network_cost(name, base, fingerprint, configuration, runtime)
    except (NetworkError, PlanError) as error:
        return NetworkCost(name, problem=str(error))
    except Exception as error:
        logger.exception("network %s", name)
        return NetworkCost(name, problem=f"unexpected {type(error).__name__}: {error}")


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
    import torch

    from segpipe.networks.build import build_network
    from segpipe.networks.measure import MemoryProbe, macs, n_parameters, seconds_of
    from segpipe.networks.spec import parse_choice
    from segpipe.planning.design import Channels
    from segpipe.planning.variant import with_network

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
