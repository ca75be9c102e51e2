"""Jobs that workers can be given."""

import os
import signal

from segpipe.errors import CaseError
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


def check_outcomes_of_work(limit) -> None:
    outcomes = {o.item: o for o in map_cases(work, range(8), workers=limit, bytes_each=1)}
    assert {i: o.value for i, o in outcomes.items()} == {0: 0, 1: 10, 2: 20, 3: None, 4: None, 5: None, 6: 60, 7: 70}
    assert outcomes[3].failure == "three is no case"
    assert "out of memory" in outcomes[4].failure
    assert "unexpected KeyError" in outcomes[5].failure
