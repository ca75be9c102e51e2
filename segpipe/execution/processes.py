"""The one door to parallel work: an executor of local processes or of a cluster, and cases mapped over it.

Workers are processes (loky: they do not import the caller's main module again, and the death of one is noticed). A case
that raises is a result like any other. When a worker is killed, the cases that were not finished are tried again one at
a time, so that the one that kills it is named and the others are not lost.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import psutil
from loky import get_reusable_executor
from loky.process_executor import BrokenProcessPool, ProcessPoolExecutor, TerminatedWorkerError

from segpipe.core.whole import is_full, said_by_system
from segpipe.errors import ClusterError, SegpipeError, WorkerKilledError
from segpipe.execution.capacity import shared_processors, worker_count
from segpipe.execution.limits import allow_ending_this_process
from segpipe.execution.quiet import ignored_warnings

if TYPE_CHECKING:
    from segpipe.execution.cluster import ClusterWorkers

logger = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")
Workers = int | Executor | None
"""Most local worker processes, or who works instead of them."""
_LOOK_S = 1.0
_REPLACED = "A worker (was restarted|stopped) while some jobs"
"""Warning of a thread of loky's: a worker that grew, or was idle for long, is replaced by a new one. That is meant to be."""


@dataclass(frozen=True)
class Outcome(Generic[Item, Result]):
    """What became of one item: a value, or the reason why there is none."""

    item: Item
    value: Result | None = None
    failure: str | None = None


@contextmanager
def open_executor(
    cluster: str | None, n_workers: int, *, environments: Sequence[Mapping[str, str]] = (), bytes_each: int = 0
) -> Iterator[LocalWorkers | ClusterWorkers]:
    """Executor of jobs that take minutes or hours, on this machine or on a cluster; a worker does one at a time.

    Parameters
    ----------
    cluster : str, optional
        Address of a Dask scheduler (tcp://host:port), or ``slurm``; None for processes on this machine.
    n_workers : int
        Local processes, or workers that SLURM is asked for.
    environments : sequence of mapping
        Variables of each local worker's environment; the processors are shared out where they do not say otherwise.
    bytes_each : int
        Forecast of what a job holds, which a cluster's workers must be allowed.

    Raises
    ------
    ClusterError
        If the cluster cannot be used.
    """
    if cluster is None:
        pool = LocalWorkers(n_workers, environments)
        try:
            with ignored_warnings(UserWarning, _REPLACED):
                yield pool
        except BaseException:
            pool.stop()
            raise
        finally:
            pool.shutdown(cancel_futures=True)
    else:
        from segpipe.execution.cluster import cluster_executor

        with cluster_executor(cluster, n_workers, bytes_each) as executor:
            yield executor


class LocalWorkers(Executor):
    """Processes, each of which is given one job at a time; one that is killed takes its own job with it and is replaced.

    A job whose process is killed raises WorkerKilledError. The processes end when the one that started them does.
    """

    def __init__(self, n_workers: int, environments: Sequence[Mapping[str, str]] = ()) -> None:
        shared = shared_processors(n_workers)
        self._workers = [
            _Worker(shared | dict(environments[n] if environments else {})) for n in range(max(n_workers, 1))
        ]
        self._idle: SimpleQueue[_Worker] = SimpleQueue()
        for worker in self._workers:
            self._idle.put(worker)
        self._threads = ThreadPoolExecutor(len(self._workers), "worker")

    def submit(self, function: Callable[..., Result], /, *args: Any, **kwargs: Any) -> Future[Result]:
        """Give a picklable function to the first worker that is free."""
        return self._threads.submit(self._call, function, args, kwargs)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the processes, once what they do is done."""
        self._threads.shutdown(wait=wait, cancel_futures=cancel_futures)
        for worker in self._workers:
            worker.close()

    def capacity(self) -> int:
        """Jobs that are done at a time."""
        return len(self._workers)

    def stop(self) -> None:
        """Ask what runs to stop: trainings save their state first."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        for worker in self._workers:
            worker.stop()

    def _call(self, function: Callable[..., Result], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Result:
        worker = self._idle.get()
        try:
            return worker.call(function, args, kwargs)
        finally:
            self._idle.put(worker)


class _Worker:
    """One process, started when there is something to do."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = dict(environment)
        self._pool: Any = None
        self._stopping = False

    def call(self, function: Callable[..., Result], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Result:
        if self._pool is None:
            self._pool = ProcessPoolExecutor(
                max_workers=1, env=self._environment, initializer=_end_with, initargs=(os.getpid(),)
            )
        try:
            future = self._pool.submit(function, *args, **kwargs)
            if self._stopping:
                # Its process may have started after the others were told.
                self.stop()
            result: Result = future.result()
        except BrokenProcessPool as error:
            self.close()
            raise WorkerKilledError(f"its process was lost ({_how_it_ended(error)})") from error
        return result

    def stop(self) -> None:
        self._stopping = True
        for process in list(self._pool._processes.values()) if self._pool is not None else ():
            with suppress(ProcessLookupError, AttributeError):
                process.terminate()

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=False, kill_workers=False)
            self._pool = None


def _end_with(parent: int) -> None:
    """End at once when the process that gave the jobs is gone: whoever takes its place finds no lock held."""

    def look() -> None:
        with suppress(psutil.Error):
            # Windows leaves a process its parent's number when that is gone.
            starter = psutil.Process(parent)
            while os.getppid() == parent and starter.is_running():
                time.sleep(_LOOK_S)
        os._exit(1)

    threading.Thread(target=look, daemon=True).start()


def _how_it_ended(error: BrokenProcessPool) -> str:
    codes = re.search(r"\{(.*?)\}", str(error))
    return codes[1] if codes else (str(error).strip().splitlines() or ["no exit code"])[0]


def map_cases(
    function: Callable[[Item], Result], items: Sequence[Item], *, workers: Workers, bytes_each: int
) -> Iterator[Outcome[Item, Result]]:
    """Apply ``function`` to each item and yield the outcomes as they come.

    An item that raises becomes a failure with its reason, whatever it raised; the others go on.

    Parameters
    ----------
    function : callable
        Function of one item; must be picklable.
    items : sequence
    workers : int, executor or None
        Most worker processes; 1 works in this process, where a case that exhausts the memory takes everything down with it. An executor (a
        cluster's) is given every item, and looks after its workers itself.
    bytes_each : int
        Peak memory of the largest item.
    """
    if workers == 1 or not items or not _may_start_processes():
        for item in items:
            yield _attempt(function, item)
        return
    if isinstance(workers, Executor):
        yield from _map_elsewhere(function, items, workers)
        return
    with ignored_warnings(UserWarning, _REPLACED):
        yield from _map_here(function, items, worker_count(workers, len(items), bytes_each))


def _map_here(
    function: Callable[[Item], Result], items: Sequence[Item], n_workers: int
) -> Iterator[Outcome[Item, Result]]:
    unfinished = dict(enumerate(items))
    while unfinished:
        pool = _workers(n_workers)
        futures = {pool.submit(_attempt, function, item): index for index, item in unfinished.items()}
        try:
            for future in as_completed(futures):
                outcome = future.result()
                del unfinished[futures[future]]
                yield outcome
        except TerminatedWorkerError:
            pool.shutdown(wait=False, kill_workers=True)
        finally:
            # Where the caller stopped listening, what has not begun is not begun.
            for future in futures:
                future.cancel()
        # Items begin in order: the one whose worker was killed is among the first that are left. Each of these is tried alone.
        for index in sorted(unfinished)[:n_workers]:
            yield _attempt_alone(function, unfinished.pop(index))


def _may_start_processes() -> bool:
    """Whether this process may have others: a worker of Dask's under its nanny may not."""
    return not multiprocessing.current_process().daemon


def _map_elsewhere(
    function: Callable[[Item], Result], items: Sequence[Item], executor: Executor
) -> Iterator[Outcome[Item, Result]]:
    futures = {executor.submit(_attempt, function, item): item for item in items}
    try:
        for future in as_completed(futures):
            try:
                yield future.result()
            except ClusterError:
                raise
            except Exception as error:
                if is_full(error):
                    raise
                yield Outcome(futures[future], failure=f"its worker was lost ({type(error).__name__}: {error})")
    finally:
        for future in futures:
            future.cancel()


def _workers(n: int) -> Any:
    """Worker processes, kept for the next stage, which share the processors."""
    return get_reusable_executor(
        max_workers=n, timeout=60, env=shared_processors(n), initializer=_begin_worker, initargs=(os.getpid(),)
    )


def _begin_worker(parent: int) -> None:
    """Prepare a worker of cases: it may be ended when a file takes too long, for a case that is lost is tried again."""
    allow_ending_this_process()
    _end_with(parent)


def reason_of(error: Exception, subject: str) -> str:
    """Return why a case, or another part of a batch, failed; what is no stated error is logged with its traceback.

    Parameters
    ----------
    error : Exception
        Error that is being handled.
    subject : str
        What failed, for the log.

    Raises
    ------
    OSError
        The same error, where a disk is full: that is no fault of this part, and the others cannot be written either.
    """
    if is_full(error):
        raise error
    if isinstance(error, SegpipeError):
        return str(error)
    if isinstance(error, OSError):
        return said_by_system(error)
    # That of a GPU is torch's own, and torch is not needed here.
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return f"out of memory ({error}); free some, use fewer worker processes, or a machine with more"
    logger.exception("%s", subject)
    return f"unexpected {type(error).__name__}: {error}"


def _attempt(function: Callable[[Item], Result], item: Item) -> Outcome[Item, Result]:
    try:
        return Outcome(item, value=function(item))
    except Exception as error:  # noqa: BLE001 - the reason is the case's result
        return Outcome(item, failure=reason_of(error, f"item {item}"))


def _attempt_alone(function: Callable[[Item], Result], item: Item) -> Outcome[Item, Result]:
    pool = _workers(1)
    try:
        outcome: Outcome[Item, Result] = pool.submit(_attempt, function, item).result()
    except TerminatedWorkerError as error:
        pool.shutdown(wait=False, kill_workers=True)
        how = _how_it_ended(error)
        likely = "out of memory, most likely" if "SIGKILL" in how else "a crash"
        if "EXIT(1)" in how:
            likely = "a file that took too long to read, most likely"
        killed = f"{likely}: its worker was killed ({how}), also when it ran alone; use a machine with more memory, or look at its files"
        outcome = Outcome(item, failure=killed)
    return outcome


def in_own_process(function: Callable[..., Result], *args: Any, **kwargs: Any) -> Result:
    """Call a function in a new process, which ends with it: nothing that was done before weighs on its time or its memory.

    Where no process may be started it is called here.

    Raises
    ------
    WorkerKilledError
        If the process is killed; what the function itself raises is passed on.
    """
    if not _may_start_processes():
        return function(*args, **kwargs)
    try:
        with ProcessPoolExecutor(max_workers=1, initializer=_end_with, initargs=(os.getpid(),)) as pool:
            result: Result = pool.submit(function, *args, **kwargs).result()
    except TerminatedWorkerError as error:
        raise WorkerKilledError(
            f"its process was killed ({_how_it_ended(error)}); where memory ran out, free some"
        ) from error
    return result
