"""Processor seconds of every test and of the whole run: `pytest -p tests.processor_times tests/unit -n 0` prints the largest.

Wall time, which `--durations` shows, says little where the processors are shared.
"""

import json
import os
from pathlib import Path

import pytest

SHOWN = 40
SECONDS: dict[str, float] = {}


def used() -> float:
    """Processor seconds of this process and of the ended processes that it started."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    """Measure set-up, call and tear-down together."""
    before = used()
    result = yield
    SECONDS[item.nodeid] = round(used() - before, 3)
    return result


def pytest_terminal_summary(terminalreporter):
    """Print the sum and the largest; keep all of them in the file that SEGPIPE_TEST_TIMES names."""
    terminalreporter.section(f"processor seconds: {used():.0f}, in tests {sum(SECONDS.values()):.0f}")
    for name in sorted(SECONDS, key=SECONDS.__getitem__, reverse=True)[:SHOWN]:
        terminalreporter.write_line(f"{SECONDS[name]:8.2f}  {name}")
    if kept := os.environ.get("SEGPIPE_TEST_TIMES"):
        Path(kept).write_text(json.dumps(SECONDS, indent=1), encoding="utf-8")
