"""What the scheduling of jobs itself takes: empty jobs on two workers, and the status of many.

    python tests/bench/bench_jobs.py [--jobs 200] [--known 10000] [--dask]

One JSON line. Each empty job stands for one of a second: overhead is the time they take beyond nothing, as a share of the seconds that as
many workers would need for them. Half of the jobs wait for the one before. ``--dask`` times the same on a scheduler and two workers on
this machine.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from segpipe.graph import Job, Journal, counts, run_graph, standings
from segpipe.jobs import capacity_of, open_executor

N_WORKERS = 2


def nothing(name: str, inputs) -> str:
    return name


def made(n: int) -> list[Job]:
    return [Job(f"j{k}", nothing, (f"j{k}",), needs=(f"j{k - 1}",) if k % 2 else ()) for k in range(n)]


def spent(folder: Path, n: int, cluster: str | None) -> float:
    with open_executor(cluster, N_WORKERS) as executor:
        # Workers that are up, as they are after the first of many jobs.
        for future in [executor.submit(nothing, "first", None) for _ in range(2 * N_WORKERS)]:
            future.result()
        journal = Journal(folder / f"{cluster is None}.jsonl")
        start = time.perf_counter()
        run_graph(made(n), executor, journal, capacity=capacity_of(executor))
        elapsed = time.perf_counter() - start
        journal.close()
    return elapsed


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--known", type=int, default=10_000)
    parser.add_argument("--dask", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        line = {"benchmark": "jobs", "jobs": options.jobs, "workers": N_WORKERS}
        seconds = options.jobs / N_WORKERS
        local = spent(folder, options.jobs, None)
        line |= {"local_s": round(local, 3), "local_overhead_percent": round(100 * local / seconds, 2)}
        if options.dask:
            from tests.dask_cluster import dask_cluster

            with dask_cluster(folder, N_WORKERS) as cluster:
                remote = spent(folder, options.jobs, cluster.address)
            line |= {"dask_s": round(remote, 3), "dask_overhead_percent": round(100 * remote / seconds, 2)}
        jobs, journal = made(options.known), Journal(folder / "known.jsonl")
        for job in jobs:
            journal.note(job.id, "running", inputs="x" * 64, attempt=1)
            journal.note(job.id, "done", inputs="x" * 64, output="y" * 64, attempt=1, seconds=1.0)
        journal.close()
        start = time.perf_counter()
        found = counts(standings(made(options.known), Journal(folder / "known.jsonl")).values())
        line |= {"status_of": options.known, "status_s": round(time.perf_counter() - start, 3), "done": found["done"]}
    print(json.dumps(line))


if __name__ == "__main__":
    main()
