"""Workers of a Dask cluster as an executor: one that runs already, or jobs of SLURM."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from segpipe.errors import ClusterError
from segpipe.version import __version__

if TYPE_CHECKING:
    from distributed import Client

SLURM = "slurm"
_SUBMIT = "sbatch"
_CONNECT_S = 30
_COUNT_AGAIN_S = 2.0
_FIRST_WORKER_S = 24 * 3600
"""How long a queue may let the first worker wait."""


@contextmanager
def cluster_executor(cluster: str, n_workers: int, bytes_each: int = 0) -> Iterator[Executor]:
    """Executor whose jobs run on a cluster's workers; every machine sees the same files under the same paths.

    A job whose worker is lost is begun again on another one, by Dask.

    Parameters
    ----------
    cluster : str
        Address of a scheduler, or ``slurm``: then workers are asked for as ``~/.config/dask/jobqueue.yaml`` says.
    n_workers : int
        To be asked of SLURM.
    bytes_each : int
        Forecast of what a job holds.

    Raises
    ------
    ClusterError
        If Dask is not installed, no scheduler answers, or a worker would do several jobs at a time, end a job for its memory, or
        runs another version.
    """
    try:
        from distributed import Client
    except ImportError as error:
        raise ClusterError(
            f"--cluster {cluster}: needs Dask; install segpipe with the extra `cluster`, here and on the workers"
        ) from error
    if cluster == SLURM:
        with _slurm_workers(n_workers) as queue, Client(queue, set_as_default=False) as client:
            client.wait_for_workers(1, timeout=_FIRST_WORKER_S)
            _require_fit(client, cluster, bytes_each)
            yield _executor(client)
        return
    if "://" not in cluster:
        raise ClusterError(f"--cluster {cluster}: expected the address of a scheduler, tcp://host:port, or slurm")
    try:
        client = Client(cluster, set_as_default=False, timeout=_CONNECT_S)
    except (OSError, ValueError) as error:
        raise ClusterError(
            f"--cluster {cluster}: no scheduler answers there ({error}); start one with `dask scheduler`"
        ) from error
    with client:
        _require_fit(client, cluster, bytes_each)
        yield _executor(client)


class WorkerCount:
    """Workers that a cluster's executor has, asked for once a while; 1 where it has none yet."""

    def __init__(self, executor: Executor) -> None:
        self._client: Any = getattr(executor, "_client", None)
        self._asked, self._n = -_COUNT_AGAIN_S, 1

    def __call__(self) -> int:
        """Count them."""
        if self._client is not None and time.monotonic() - self._asked > _COUNT_AGAIN_S:
            self._asked, self._n = time.monotonic(), max(len(self._client.scheduler_info(n_workers=-1)["workers"]), 1)
        return self._n


def _executor(client: Client) -> Executor:
    # Not pure: a job leaves files behind, so that the same call twice is two jobs.
    executor: Executor = client.get_executor(pure=False)
    return executor


def _require_fit(client: Client, cluster: str, bytes_each: int) -> None:
    """Raise unless the workers that are there can do the jobs."""
    workers = client.scheduler_info(n_workers=-1)["workers"]
    if not workers:
        raise ClusterError(
            f"--cluster {cluster}: the scheduler has no worker; start some with `dask worker {cluster} --nthreads 1`"
        )
    greedy = next((name for name, about in workers.items() if about["nthreads"] != 1), None)
    if greedy is not None:
        raise ClusterError(
            f"--cluster {cluster}: worker {greedy} does {workers[greedy]['nthreads']} jobs at a time, which would share one process's "
            "memory and GPU; start workers with --nthreads 1, one a GPU"
        )
    tight = next((name for name, about in workers.items() if 0 < about["memory_limit"] < bytes_each), None)
    if tight is not None:
        raise ClusterError(
            f"--cluster {cluster}: worker {tight} ends jobs that hold more than {workers[tight]['memory_limit'] / 1e9:.1f} GB, and one is "
            f"forecast to hold {bytes_each / 1e9:.1f} GB; start workers with --memory-limit 0, or with enough"
        )
    versions = client.run(_version)
    other = next((name for name, version in versions.items() if version != __version__), None)
    if other is not None:
        raise ClusterError(
            f"--cluster {cluster}: worker {other} has segpipe {versions[other]}, and {__version__} is here; install the same everywhere"
        )


def _version() -> str:
    return __version__


@contextmanager
def _slurm_workers(n_workers: int) -> Iterator[Any]:
    try:
        from dask_jobqueue import SLURMCluster
    except ImportError as error:
        raise ClusterError("--cluster slurm: needs dask-jobqueue; install segpipe with the extra `cluster`") from error
    if shutil.which(_SUBMIT) is None:
        raise ClusterError(f"--cluster slurm: there is no {_SUBMIT} here; run this where jobs can be submitted")
    try:
        queue = SLURMCluster(processes=1, worker_extra_args=["--nthreads", "1"])
    except (ValueError, TypeError, OSError) as error:
        raise ClusterError(
            f"--cluster slurm: {error}; say in ~/.config/dask/jobqueue.yaml what a worker is to get (docs/stages/crossval.md)"
        ) from error
    with queue:
        queue.scale(jobs=n_workers)
        yield queue
