"""Workers of a Dask cluster as an executor: one that runs already, or jobs of SLURM."""

from __future__ import annotations

import logging
import math
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, InvalidStateError
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, TypeVar

from segpipe.errors import ClusterError, WorkerKilledError
from segpipe.version import __version__

if TYPE_CHECKING:
    from distributed import Client

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

SLURM = "slurm"
_SUBMIT = "sbatch"
_CONNECT_S = 30
_COUNT_AGAIN_S = 2.0
_FIRST_WORKER_S = 24 * 3600
"""How long a queue may let the first worker wait."""


@contextmanager
def cluster_executor(cluster: str, n_workers: int, bytes_each: int = 0) -> Iterator[ClusterWorkers]:
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
            yield ClusterWorkers(client, cluster)
        return
    if "://" not in cluster:
        raise ClusterError(f"--cluster {cluster}: expected the address of a scheduler, tcp://host:port, or slurm")
    try:
        client = Client(cluster, set_as_default=False, timeout=_CONNECT_S)
    except (OSError, ValueError) as error:
        raise ClusterError(
            f"--cluster {cluster}: no scheduler answers there ({error}); start one with `dask scheduler`"
        ) from error
    # Its errors reach whoever waits for a job.
    logging.getLogger("distributed.client").setLevel(logging.CRITICAL)
    with client:
        _require_fit(client, cluster, bytes_each)
        yield ClusterWorkers(client, cluster)


class ClusterWorkers(Executor):
    """Dask's workers as an executor; whatever becomes of a job or of the connection, the job's future says so.

    Dask's own executor leaves a future waiting for ever where fetching its result fails, as it does when the scheduler is lost in
    that moment.

    A job whose workers were killed, one after the other, raises WorkerKilledError; all raise ClusterError once the scheduler is lost.
    """

    def __init__(self, client: Client, cluster: str) -> None:
        self._client, self._cluster = client, cluster
        self._asked, self._n = -math.inf, 1
        self._gone: ClusterError | None = None

    def submit(self, function: Callable[..., Result], /, *args: Any, **kwargs: Any) -> Future[Result]:
        """Give a picklable function to a worker.

        Raises
        ------
        ClusterError
            If the scheduler is lost.
        """
        self._require_scheduler()
        try:
            # Not pure: a job leaves files behind, so that the same call twice is two jobs.
            remote = self._client.submit(function, *args, pure=False, **kwargs)
        except Exception as error:
            raise self._lost(error) from error
        future: Future[Result] = Future()
        future.add_done_callback(lambda local: remote.cancel() if local.cancelled() else None)
        self._client.loop.add_callback(self._follow, remote, future)
        return future

    def capacity(self) -> int:
        """Jobs that are done at a time, counted anew every few seconds; 1 where there is no worker yet.

        Raises
        ------
        ClusterError
            If the scheduler is lost.
        """
        self._require_scheduler()
        if time.monotonic() - self._asked > _COUNT_AGAIN_S:
            try:
                n = len(self._client.scheduler_info(n_workers=-1)["workers"])
            except Exception as error:
                raise self._lost(error) from error
            if not n and self._n:
                logger.warning("%s has no worker left; jobs wait until there is one", self._cluster)
            self._asked, self._n = time.monotonic(), n
        return max(self._n, 1)

    async def _follow(self, remote: Any, future: Future[Result]) -> None:
        """Pass on what becomes of a job. Everything that is raised is passed on too, or its future would never be done."""
        from distributed import CancelledError, KilledWorker

        # One that was cancelled here meanwhile takes neither.
        with suppress(InvalidStateError):
            try:
                future.set_result(await self._client.gather(remote, asynchronous=True))
            except KilledWorker as error:
                future.set_exception(WorkerKilledError(f"its workers were lost one after the other ({error})"))
            except CancelledError as error:
                if not future.cancelled():
                    future.set_exception(self._lost(error))
            except BaseException as error:  # noqa: BLE001 - whoever waits for the job is told
                future.set_exception(error)

    def _require_scheduler(self) -> None:
        if self._gone is not None:
            raise self._gone

    def _lost(self, error: BaseException) -> ClusterError:
        why = getattr(error, "reason", None) or f"{type(error).__name__}: {error}"
        self._gone = ClusterError(
            f"--cluster {self._cluster}: the scheduler is lost ({why}); what is done is kept: see that it runs, "
            "and the same command continues"
        )
        return self._gone


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
    try:
        versions = client.run(_version)
    except Exception as error:
        raise ClusterError(
            f"--cluster {cluster}: not every worker says which segpipe it has ({type(error).__name__}: {error}); "
            f"install {__version__} on all"
        ) from error
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
