from functools import partial

import pytest

from segpipe.execution.processes import map_cases
from tests.helpers.jobs import check_outcomes_of_work, work


@pytest.mark.parametrize("limit", [2, None])
def test_a_failure_is_the_outcome_of_its_item_alone(limit):
    check_outcomes_of_work(limit)


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
