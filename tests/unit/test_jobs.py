from concurrent.futures import Executor, Future

import pytest

from segpipe.errors import ClusterError, WorkerKilledError
from segpipe.execution.capacity import worker_count
from segpipe.execution.memory import free_bytes
from segpipe.execution.processes import map_cases
from tests.helpers.jobs import check_outcomes_of_work, work


def test_a_failure_is_the_outcome_of_its_item_alone():
    check_outcomes_of_work(limit=1)


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


def test_workers_are_as_many_as_memory_allows():
    assert worker_count(4, 10, 1) >= 1
    assert worker_count(4, 1, 1) == 1
    assert worker_count(8, 10, 2**60) == 1
    assert worker_count(1, 10, 1) == 1
    assert 0 < free_bytes() < 2**50
