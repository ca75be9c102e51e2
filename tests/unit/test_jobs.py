import os
import signal
from concurrent.futures import Executor, Future
from functools import partial

import pytest

from segpipe.errors import CaseError, ClusterError, WorkerKilledError
from segpipe.execution.capacity import worker_count
from segpipe.execution.memory import free_bytes
from segpipe.execution.processes import map_cases


def work(item, kill=()):
    if item in kill:
        os.kill(os.getpid(), signal.SIGKILL)
    if item == 3:
        raise CaseError("three is no case")
    if item == 4:
        raise MemoryError("all of it")
    if item == 5:
        raise KeyError("a bug")
    return item * 10


@pytest.mark.parametrize("limit", [1, 2, None])
def test_a_failure_is_the_outcome_of_its_item_alone(limit):
    outcomes = {o.item: o for o in map_cases(work, range(8), workers=limit, bytes_each=1)}
    assert {i: o.value for i, o in outcomes.items()} == {0: 0, 1: 10, 2: 20, 3: None, 4: None, 5: None, 6: 60, 7: 70}
    assert outcomes[3].failure == "three is no case"
    assert "out of memory" in outcomes[4].failure
    assert "unexpected KeyError" in outcomes[5].failure


class Gone(Executor):
    """Takes everything, and is then lost."""

    def submit(self, function, /, *args, **kwargs):
        future = Future()
        future.set_exception(self.error)
        return future


@pytest.mark.parametrize("error", [ClusterError("gone"), WorkerKilledError("killed")])
def test_a_lost_cluster_is_no_fault_of_the_cases_and_a_lost_worker_one_of_its_case(error):
    workers = Gone()
    workers.error = error
    mapped = map_cases(work, [1, 2], workers=workers, bytes_each=1)
    if isinstance(error, ClusterError):
        with pytest.raises(ClusterError, match="gone"):
            list(mapped)
    else:
        assert {o.item: o.failure for o in mapped} == dict.fromkeys(
            (1, 2), "its worker was lost (WorkerKilledError: killed)"
        )


@pytest.mark.parametrize("bytes_each", [1, 2**60])
def test_a_killed_worker_is_named_and_loses_nobody_else(bytes_each):
    """Also when memory allows one worker only: the command itself must not be what dies."""
    outcomes = {
        o.item: o for o in map_cases(partial(work, kill=(2,)), [0, 1, 2, 6, 7], workers=None, bytes_each=bytes_each)
    }
    assert {i: o.value for i, o in outcomes.items()} == {0: 0, 1: 10, 2: None, 6: 60, 7: 70}
    assert outcomes[2].failure.startswith("out of memory, most likely: its worker was killed (SIGKILL")


def test_the_items_after_a_kill_go_on_in_parallel(tmp_path):
    outcomes = {
        o.item: o for o in map_cases(partial(work, kill=(2, 11)), [0, 1, 2, *range(6, 30)], workers=2, bytes_each=1)
    }
    assert sorted(i for i, o in outcomes.items() if o.failure) == [2, 11]
    assert len(outcomes) == 27


def test_workers_are_as_many_as_memory_allows():
    assert worker_count(4, 10, 1) >= 1
    assert worker_count(4, 1, 1) == 1
    assert worker_count(8, 10, 2**60) == 1
    assert worker_count(1, 10, 1) == 1
    assert 0 < free_bytes() < 2**50
