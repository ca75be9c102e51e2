"""One process at a time in a folder: who waits, who is told, who is refused."""

import threading
from contextlib import contextmanager

import pytest

from segpipe.errors import LockedError
from segpipe.execution import locks
from segpipe.execution.locks import is_locked, locked


@contextmanager
def held(folder, seconds=None):
    """Hold a folder's lock, or for some seconds, in a thread: a lock of another object is another process's."""
    begun, over = threading.Event(), threading.Event()

    def work():
        with locked(folder, wait=False):
            begun.set()
            over.wait(seconds)

    thread = threading.Thread(target=work)
    thread.start()
    assert begun.wait(10)
    try:
        yield
    finally:
        over.set()
        thread.join()


def test_who_does_not_wait_is_refused_and_told_by_whom(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "_MOMENT_S", 0.1)
    with held(tmp_path):
        refused = pytest.raises(LockedError, match=r"another segpipe works here \(process \d+ on ")
        with refused, locked(tmp_path, wait=False):
            pass
        assert is_locked(tmp_path)
    assert not is_locked(tmp_path)


def test_a_look_at_the_lock_stops_nobody(tmp_path):
    """Who only looks holds the lock for a moment; a command that begins in that moment begins."""
    over = threading.Event()

    def look():
        while not over.is_set():
            is_locked(tmp_path)

    lookers = [threading.Thread(target=look) for _ in range(2)]
    for looker in lookers:
        looker.start()
    try:
        for _ in range(100):
            with locked(tmp_path, wait=False):
                pass
    finally:
        over.set()
        for looker in lookers:
            looker.join()


def test_who_waits_is_told_again_and_again(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "_TELL_AGAIN_S", 0.2)
    told = []
    with held(tmp_path, 1), locked(tmp_path, wait=True, note=told.append):
        pass
    assert "waiting for another segpipe (process" in told[0]
    assert any("still waiting" in line for line in told[1:])
