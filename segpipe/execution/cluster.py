"""Workers of a Dask cluster as an executor: one that runs already, or jobs of SLURM."""

from __future__ import annotations

import logging
import math
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor, Future, InvalidStateError
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, TypeVar

from segpipe.errors import ClusterError, WorkerKilledError
from segpipe.execution.quiet import logger_levels
from segpipe.version import __version__

if TYPE_CHECKING:
    from distributed import Client

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

SLURM = "slurm"
# What matters of their messages reaches whoever waits for a job.
_QUIET = {
    "distributed": logging.ERROR,
    "distributed.client": logging.CRITICAL,
    "tornado.application": logging.CRITICAL,
}
_SUBMIT = "sbatch"
_ANSWER_S = 30
"""How long a scheduler may take to answer."""
_ASKED_S = 10
"""How long workers may take to say what they are; those that do not are asked again."""
_SUBMITTED_S = 300
_COUNT_AGAIN_S = 2.0
_REPLACE_S = 30.0
_USABLE_SHARE = 0.8
"""Share of its memory limit from which on Dask gives a worker nothing more to do (``distributed.worker.memory.pause``)."""


@contextmanager
def cluster_executor(cluster: str, n_workers: int, bytes_each: int = 0) -> Iterator[ClusterWorkers]:
    """Executor whose jobs run on a cluster's workers; every machine sees the same files under the same paths.

    A job whose worker is lost is begun again on another one, by Dask.

    Parameters
    ----------
    cluster : str
        Address of a scheduler, or ``slurm``: then workers are asked for as ``~/.config/dask/jobqueue.yaml`` says, and what is given to
        the executor waits until SLURM has started them.
    n_workers : int
        To be asked of SLURM.
    bytes_each : int
        Forecast of what a job holds.

    Raises
    ------
    ClusterError
        If Dask is not installed, no scheduler answers, it has no worker, or SLURM takes no job.
    """
    try:
        from distributed import Client
    except ImportError as error:
        raise ClusterError(
            f"--cluster {cluster}: needs Dask; install segpipe with the extra `cluster`, here and on the workers"
        ) from error
    with logger_levels(_QUIET), _client(Client, cluster, n_workers) as client:
        workers = ClusterWorkers(client, cluster, bytes_each)
        if cluster != SLURM and not workers.count():
            raise ClusterError(
                f"--cluster {cluster}: the scheduler has no worker; start some with `dask worker {cluster} --nthreads 1`"
            )
        yield workers


@contextmanager
def _client(connect: type[Client], cluster: str, n_workers: int) -> Iterator[Client]:
    """Connect to a scheduler, or to one of SLURM's workers that is started for it."""
    if cluster == SLURM:
        with _slurm_workers(n_workers) as queue, connect(queue, set_as_default=False) as client:
            yield client
        return
    if "://" not in cluster:
        raise ClusterError(f"--cluster {cluster}: expected the address of a scheduler, tcp://host:port, or slurm")
    try:
        client = connect(cluster, set_as_default=False, timeout=_ANSWER_S)
    except (OSError, ValueError) as error:
        raise ClusterError(
            f"--cluster {cluster}: no scheduler answers there ({error}); start one with `dask scheduler`"
        ) from error
    with client:
        yield client


class ClusterWorkers(Executor):
    """Dask's workers as an executor; whatever becomes of a job or of the connection, the job's future says so.

    Dask's own executor leaves a future waiting for ever where fetching its result fails, as it does when the scheduler is lost in
    that moment.

    A job whose workers were killed, one after the other, raises WorkerKilledError; all raise ClusterError once the scheduler is lost.
    """

    def __init__(self, client: Client, cluster: str, bytes_each: int = 0) -> None:
        self._client, self._cluster, self._bytes_each = client, cluster, bytes_each
        self._asked, self._n, self._told = -math.inf, 0, False
        self._known: frozenset[str] = frozenset()
        self._gone: ClusterError | None = None

    def submit(self, function: Callable[..., Result], /, *args: Any, **kwargs: Any) -> Future[Result]:
        """Give a picklable function to a worker, or to the first that comes.

        Raises
        ------
        ClusterError
            If the scheduler is lost.
        """
        with self._asking():
            # Not pure: a job leaves files behind, so that the same call twice is two jobs.
            remote = self._client.submit(function, *args, pure=False, **kwargs)
        future: Future[Result] = Future()
        future.add_done_callback(lambda local: remote.cancel() if local.cancelled() else None)
        self._client.loop.add_callback(self._follow, remote, future)
        return future

    def capacity(self) -> int:
        """Jobs that are done at a time, counted anew every few seconds; 1 where there is no worker yet.

        Raises
        ------
        ClusterError
            If the scheduler is lost, or a worker that came does not fit.
        """
        self._require_scheduler()
        n = self._n if time.monotonic() - self._asked < _COUNT_AGAIN_S else self.count()
        if not n and not self._told:
            logger.warning("--cluster %s: there is no worker; jobs wait until there is one", self._cluster)
        self._told = not n
        return max(n, 1)

    def count(self) -> int:
        """Workers that take jobs, those that came since the last time looked at.

        Raises
        ------
        ClusterError
            If the scheduler is lost, or a worker would do several jobs at a time, end a job for its memory, or has another version.
        """
        with self._asking():
            about = self._client.sync(self._client.scheduler.identity, callback_timeout=_ANSWER_S)
        workers: dict[str, Mapping[str, Any]] = about["workers"]
        came = {address: worker for address, worker in workers.items() if address not in self._known}
        self._known = (self._known & frozenset(workers)) | self._require_fit(came)
        self._asked = time.monotonic()
        # One whose memory is full is paused.
        self._n = sum(worker.get("status", "running") == "running" for worker in workers.values())
        return self._n

    def _require_fit(self, workers: Mapping[str, Mapping[str, Any]]) -> frozenset[str]:
        """Raise unless workers that came can do the jobs; returns those that could be asked."""
        for name, about in workers.items():
            if about["nthreads"] != 1:
                raise ClusterError(
                    f"--cluster {self._cluster}: worker {name} does {about['nthreads']} jobs at a time, which would share one process's "
                    "memory and GPU; start workers with --nthreads 1, one a GPU"
                )
            if 0 < _USABLE_SHARE * about["memory_limit"] < self._bytes_each:
                raise ClusterError(
                    f"--cluster {self._cluster}: worker {name} has {about['memory_limit'] / 1e9:.1f} GB, of which Dask lets a job use "
                    f"{_USABLE_SHARE:.0%}, and one is forecast to hold {self._bytes_each / 1e9:.1f} GB; start workers with "
                    "--memory-limit 0, or with enough"
                )
        answers = self._versions(list(workers)) if workers else {}
        for name, version in answers.items():
            if version != __version__:
                raise ClusterError(
                    f"--cluster {self._cluster}: {name or 'the scheduler'} has segpipe {version}, and {__version__} is here; "
                    "install the same on the scheduler and on all workers"
                )
        return frozenset(answers)

    def _versions(self, workers: list[str]) -> dict[str, str]:
        """Versions of segpipe on workers, and under no name on the scheduler, which unpacks jobs too; what is wrong where there is none."""

        async def asked() -> dict[str, Any]:
            # Asynchronously both are awaitable, whatever their types say.
            scheduler: Any = self._client.run_on_scheduler(_version, asynchronous=True)
            found: dict[str, Any] = {"": await scheduler}
            others: Any = self._client.run(_version, workers=workers, on_error="return", asynchronous=True)
            found |= await others
            return found

        try:
            told: dict[str, Any] = self._client.sync(asked, callback_timeout=_ASKED_S)
        except TimeoutError:
            return {}
        except Exception as error:  # noqa: BLE001 - whatever keeps the scheduler from saying it
            told = {"": error}
        # One that is gone again, or too busy to answer, is asked the next time.
        return {
            name: f"which cannot be used ({type(said).__name__}: {said})" if isinstance(said, Exception) else said
            for name, said in told.items()
            if not isinstance(said, OSError)
        }

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
                # Of a job that raised it itself nothing is known.
                lost = getattr(error, "reason", None) is not None and not future.cancelled()
                future.set_exception(self._lost(error) if lost else error)
            except BaseException as error:  # noqa: BLE001 - whoever waits for the job is told
                future.set_exception(error)

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """Ask the scheduler for something; what it does not answer means that it is lost."""
        self._require_scheduler()
        try:
            yield
        except Exception as error:
            if isinstance(error, (OSError, TimeoutError, RuntimeError)) or self._client.status != "running":
                raise self._lost(error) from error
            raise

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


def _version() -> str:
    return __version__


@contextmanager
def _slurm_workers(n_workers: int) -> Iterator[Any]:
    """Ask SLURM for workers, and for others in the place of those that ended: their time is limited, and a run may take longer."""
    try:
        from dask import config
        from dask_jobqueue import SLURMCluster
    except ImportError as error:
        raise ClusterError("--cluster slurm: needs dask-jobqueue; install segpipe with the extra `cluster`") from error
    if shutil.which(_SUBMIT) is None:
        raise ClusterError(f"--cluster slurm: there is no {_SUBMIT} here; run this where jobs can be submitted")
    try:
        # Its web pages would be open to everybody in the network.
        options = {"dashboard": False, "dashboard_address": "127.0.0.1:0"} | (
            config.get("jobqueue.slurm.scheduler-options", None) or {}
        )
        queue = SLURMCluster(processes=1, worker_extra_args=["--nthreads", "1"], scheduler_options=options)
    except (ValueError, TypeError, OSError) as error:
        raise ClusterError(
            f"--cluster slurm: {error}; say in ~/.config/dask/jobqueue.yaml what a worker is to get (docs/stages/crossval.md)"
        ) from error
    over = threading.Event()

    def replace() -> None:
        while not over.wait(_REPLACE_S):
            try:
                _ask_for(queue, n_workers)
            except ClusterError as error:
                logger.warning("%s", error)

    watcher = threading.Thread(target=replace, daemon=True)
    try:
        _ask_for(queue, n_workers)
        watcher.start()
        yield queue
    finally:
        over.set()
        if watcher.ident is not None:
            watcher.join(_ANSWER_S)
        try:
            queue.close()
        except Exception as error:  # noqa: BLE001 - of many types, and none that matters any more
            # As it does where a worker was never started; what was done with the others is not lost by it.
            logger.info("SLURM's workers were not ended in good order: %s: %s", type(error).__name__, error)


def _ask_for(queue: Any, n_workers: int) -> None:
    """Have SLURM start the workers that are missing."""

    async def submitted() -> None:
        queue.scale(jobs=n_workers)
        await queue

    try:
        queue.sync(submitted, callback_timeout=_SUBMITTED_S)
    except Exception as error:
        raise ClusterError(
            f"--cluster slurm: a worker could not be asked for ({' '.join(str(error).split()) or type(error).__name__}); "
            f"see that {_SUBMIT} takes what ~/.config/dask/jobqueue.yaml says"
        ) from error
