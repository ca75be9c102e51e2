"""Jobs that workers can be given."""

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from segpipe.errors import CrossvalError
from segpipe.execution.graph import Journal, run_graph


def write(folder: Path, name: str, inputs) -> str:
    """Leave a file, and a line for each time that it was done."""
    with (folder / "done.txt").open("a", encoding="utf-8") as file:
        file.write(f"{name} {','.join(sorted(inputs.outputs))}\n")
    (folder / name).write_text(inputs.digest, encoding="utf-8")
    return inputs.digest


def fail(folder: Path, inputs) -> str:
    raise CrossvalError(f"{folder}: cannot be done")


def lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines() if path.is_file() else []


def run(jobs, folder, executor=None, **options):
    journal = Journal(folder / "jobs.jsonl")
    try:
        with executor or ThreadPoolExecutor(2) as pool:
            return run_graph(jobs, pool, journal, capacity=lambda: 2, **options)
    finally:
        journal.close()


def slow_pids() -> tuple[int, int]:
    """A worker's process, and the one that looks after it."""
    time.sleep(0.5)
    return os.getpid(), os.getppid()


def double(number: int) -> int:
    return 2 * number
