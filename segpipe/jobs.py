"""The one door to parallel work over cases.

Workers are processes (loky: they do not import the caller's main module again, and the death of one is noticed). A case
that raises is a result like any other. When a worker is killed, the cases that were not finished are tried again one at
a time, so that the one that kills it is named and the others are not lost.
"""

import logging
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import as_completed
from dataclasses import dataclass
from typing import Generic, TypeVar

import psutil
from loky import ProcessPoolExecutor
from loky.process_executor import TerminatedWorkerError

from segpipe.errors import CaseError

logger = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Outcome(Generic[Item, Result]):
    """What became of one item: a value, or the reason why there is none."""

    item: Item
    value: Result | None = None
    failure: str | None = None


def worker_count(requested: int | None, n_items: int, bytes_each: int) -> int:
    """Number of workers that the processors, the items and the free memory allow.

    Parameters
    ----------
    requested : int or None
        The caller's own limit; None for one a processor.
    n_items : int
        Items to work on.
    bytes_each : int
        Peak memory of the largest item.
    """
    free = int(psutil.virtual_memory().available * 0.8)
    fitting = max(free // max(bytes_each, 1), 1)
    processors = len(psutil.Process().cpu_affinity()) if hasattr(psutil.Process, "cpu_affinity") else psutil.cpu_count()
    return int(max(1, min(requested or processors, n_items, fitting)))


def map_cases(
    function: Callable[[Item], Result], items: Sequence[Item], *, workers: int
) -> Iterator[Outcome[Item, Result]]:
    """Apply ``function`` to each item and yield the outcomes as they come.

    An item that raises becomes a failure with its reason, whatever it raised; the others go on.
    """
    if workers == 1:
        for item in items:
            yield _attempt(function, item)
        return
    unfinished = dict(enumerate(items))
    with ProcessPoolExecutor(max_workers=workers, timeout=60) as pool:
        futures = {pool.submit(_attempt, function, item): index for index, item in unfinished.items()}
        try:
            for future in as_completed(futures):
                outcome = future.result()
                del unfinished[futures[future]]
                yield outcome
        except TerminatedWorkerError:
            pool.shutdown(wait=False, kill_workers=True)
    for item in unfinished.values():
        yield _attempt_alone(function, item)


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
    with ProcessPoolExecutor(max_workers=1, timeout=60) as pool:
        try:
            outcome: Outcome[Item, Result] = pool.submit(_attempt, function, item).result()
        except TerminatedWorkerError as error:
            pool.shutdown(wait=False, kill_workers=True)
            codes = re.search(r"\{.*?\}", str(error))
            how = codes.group() if codes else "no exit code"
            killed = f"its worker was killed ({how}), most likely for memory, also when it ran alone; use a machine with more"
            outcome = Outcome(item, failure=killed)
    return outcome
