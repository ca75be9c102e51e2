"""The one door to parallel work over cases.

Workers are processes (loky: they do not import the caller's main module again, and the death of one is noticed). A case
that raises is a result like any other. When a worker is killed, the cases that were not finished are tried again one at
a time, so that the one that kills it is named and the others are not lost.
"""

import logging
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import as_completed
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import psutil
from loky import cpu_count, get_reusable_executor
from loky.process_executor import ProcessPoolExecutor, TerminatedWorkerError

from segpipe.errors import CaseError, SegpipeError

logger = logging.getLogger(__name__)

# A worker that grew is replaced by a new one; that is meant to be, and no news for a user.
warnings.filterwarnings("ignore", message="A worker (was restarted|stopped) while some jobs", category=UserWarning)

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Outcome(Generic[Item, Result]):
    """What became of one item: a value, or the reason why there is none."""

    item: Item
    value: Result | None = None
    failure: str | None = None


def map_cases(
    function: Callable[[Item], Result], items: Sequence[Item], *, limit: int | None, bytes_each: int
) -> Iterator[Outcome[Item, Result]]:
    """Apply ``function`` to each item and yield the outcomes as they come.

    An item that raises becomes a failure with its reason, whatever it raised; the others go on.

    Parameters
    ----------
    function : callable
        Of one item; must be picklable.
    items : sequence
    limit : int or None
        Most workers; 1 works in this process, where a case that exhausts the memory takes everything down with it.
    bytes_each : int
        Peak memory of the largest item.
    """
    if limit == 1 or not items:
        for item in items:
            yield _attempt(function, item)
        return
    unfinished = dict(enumerate(items))
    n_workers = worker_count(limit, len(items), bytes_each)
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


def _workers(n: int) -> Any:
    """Worker processes, kept for the next stage, which share the processors: left alone, each would start as many threads as there are."""
    threads = str(max(cpu_count() // n, 1))
    limits = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), threads)
    return get_reusable_executor(max_workers=n, timeout=60, env=limits)


def worker_count(limit: int | None, n_items: int, bytes_each: int) -> int:
    """Number of workers that the processors, the items, the free memory and the caller's limit allow."""
    fitting = int(free_bytes() * 0.8) // max(bytes_each, 1)
    return int(max(1, min(limit or cpu_count(), n_items, fitting)))


def free_bytes() -> int:
    """Memory that may still be taken: the machine's, or what is left of a container's own limit."""
    free = int(psutil.virtual_memory().available)
    group = Path("/sys/fs/cgroup")
    with suppress(OSError, ValueError):
        limit, used = ((group / name).read_text().strip() for name in ("memory.max", "memory.current"))
        # Files that were read lately count as used and are given back when memory is asked for.
        cached = dict(line.split() for line in (group / "memory.stat").read_text().splitlines()).get(
            "inactive_file", "0"
        )
        free = min(free, int(limit) - int(used) + int(cached))
    return max(free, 0)


def _attempt(function: Callable[[Item], Result], item: Item) -> Outcome[Item, Result]:
    try:
        return Outcome(item, value=function(item))
    except CaseError as error:
        return Outcome(item, failure=str(error))
    except MemoryError as error:
        return Outcome(item, failure=f"out of memory ({error}); use a machine with more memory or fewer --jobs")
    except Exception as error:
        logger.exception("item %s", item)
        return Outcome(item, failure=f"unexpected {type(error).__name__}: {error}")


def _attempt_alone(function: Callable[[Item], Result], item: Item) -> Outcome[Item, Result]:
    pool = _workers(1)
    try:
        outcome: Outcome[Item, Result] = pool.submit(_attempt, function, item).result()
    except TerminatedWorkerError as error:
        pool.shutdown(wait=False, kill_workers=True)
        codes = re.search(r"\{(.*?)\}", str(error))
        how = codes[1] if codes else "no exit code"
        likely = "out of memory, most likely" if "SIGKILL" in how else "a crash"
        killed = f"{likely}: its worker was killed ({how}), also when it ran alone; use a machine with more memory, or look at its files"
        outcome = Outcome(item, failure=killed)
    return outcome


def in_own_process(function: Callable[..., Result], *args: Any, **kwargs: Any) -> Result:
    """Call a function in a new process, which ends with it: nothing that was done before weighs on its time or its memory.

    Raises
    ------
    SegpipeError
        If the process is killed; what the function itself raises is passed on.
    """
    try:
        with ProcessPoolExecutor(max_workers=1) as pool:
            result: Result = pool.submit(function, *args, **kwargs).result()
    except TerminatedWorkerError as error:
        raise SegpipeError(f"its process was killed ({error}); where memory ran out, free some") from error
    return result


class PeakMemory:
    """The most memory that this process holds while the context lasts, in GB (1e9 bytes); None where the system does not tell."""

    def __init__(self) -> None:
        self.gb: float | None = None

    def __enter__(self) -> "PeakMemory":
        # Linux forgets the peak so far when it is told to.
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError, StopIteration, ValueError):
            lines = Path("/proc/self/status").read_text().splitlines()
            peak = next(line for line in lines if line.startswith("VmHWM:"))
            self.gb = round(int(peak.split()[1]) * 1024 / 1e9, 3)
