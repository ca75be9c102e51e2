"""Jobs that workers can be given."""

import os
import signal

from segpipe.errors import CaseError


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
