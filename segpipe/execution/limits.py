"""A limit of time for work that may never end, such as reading a damaged file."""

import ctypes
import faulthandler
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_GRACE_S = 60.0
"""A library that does not come back to Python has this much longer; then its worker process is ended."""
_in_worker = False


def allow_ending_this_process() -> None:
    """Declare this process a worker: where nothing else stops what takes too long, the process is ended and replaced."""
    global _in_worker
    _in_worker = True


class _TimeIsUp(BaseException):
    """Raised in the thread whose time is up. No library's ``except Exception`` catches it."""


@contextmanager
def time_limit(seconds: float, error: Callable[[], Exception]) -> Iterator[None]:
    """Stop what is done in the context when it takes longer than ``seconds``.

    It is stopped at its next step in Python, in whatever thread it runs. A library that makes no such step cannot be stopped. In a worker
    process, this process is ended then, a minute later.

    Parameters
    ----------
    seconds : float
        Most time.
    error : callable
        Makes the exception that is raised instead.
    """
    thread = threading.get_ident()
    lock = threading.Lock()
    is_open = True

    def stop() -> None:
        with lock:
            if is_open:
                _raise_in(thread, _TimeIsUp)

    timer = threading.Timer(seconds, stop)
    timer.daemon = True
    timer.start()
    try:
        with _ended_after(seconds + _GRACE_S):
            try:
                yield
            finally:
                timer.cancel()
                with lock:
                    is_open = False
                # What was raised at the same moment arrives here, at the return of a call, and not later. Taking it back instead
                # (an exception of None) leaves a flag set in CPython 3.11, on which a traced thread turns round for ever.
                time.sleep(0)
    except _TimeIsUp:
        raise error() from None


@contextmanager
def _ended_after(seconds: float) -> Iterator[None]:
    if not _in_worker:
        yield
        return
    with open(os.devnull, "w", encoding="utf-8", newline="\n") as nowhere:  # noqa: PTH123 - it is no path
        # By a thread of C: a library that holds Python's lock does not delay it.
        faulthandler.dump_traceback_later(seconds, exit=True, file=nowhere)
        try:
            yield
        finally:
            faulthandler.cancel_dump_traceback_later()


def _raise_in(thread: int, kind: type[BaseException]) -> None:
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(kind))
