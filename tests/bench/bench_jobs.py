"""What the scheduling of jobs itself takes: empty jobs on two workers, and the status of many.

    python tests/bench/bench_jobs.py [--jobs 200] [--known 10000] [--dask]

One JSON line. Each empty job stands for one of a second: overhead is the time they take beyond nothing, as a share of the seconds that as
many workers would need for them. Half of the jobs wait for the one before. ``--dask`` times the same on a scheduler and two workers on
this machine.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from segpipe.core.workspace import Workspace
from segpipe.crossvalidation.candidates import Candidate
from segpipe.crossvalidation.folder import CrossvalFolder
from segpipe.crossvalidation.schema import CrossvalDesign
from segpipe.crossvalidation.splits import Request, divided_evenly
from segpipe.execution.graph import Job, Journal, counts, run_graph
from segpipe.execution.processes import open_executor
from segpipe.planning.recipe import Recipe
from segpipe.workflows.crossval.command import crossval_status

ROOT = Path(__file__).parents[2]
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
        run_graph(made(n), executor, journal, capacity=executor.capacity)
        elapsed = time.perf_counter() - start
        journal.close()
    return elapsed


def status_of_many(work: Path, n: int) -> dict[str, float]:
    """A cross-validation that leaves out one patient at a time, and says where it stands when most of it is done."""
    candidates = tuple(Candidate(configuration="2d", settings={"momentum": 0.9 + k / 100}) for k in range(10))
    recipe = Recipe(name="r", description="")
    design = CrossvalDesign(
        software="x", dataset_name="many", recipe=recipe, candidates=candidates, inner_folds=5, final=False
    )
    # Of each study: one to measure, one to prepare, two a candidate, one a candidate and inner fold, five pairs, select, pack, test.
    n_patients = round(n / (1 + 1 + 2 * 10 + 10 * 5 + 5 + 3))
    groups = {f"p{k:03d}": f"p{k:03d}" for k in range(n_patients)}
    request = Request(
        groups=groups, grouped_by="patient", n_folds=n_patients, n_inner=5, seed=0, dataset_digest="", final=False
    )
    folder = CrossvalFolder(Workspace(work))
    splits = divided_evenly(request)
    design.write(folder.design)
    splits.write(folder.splits)
    journal = Journal(folder.journal)
    standing = crossval_status(work).standings
    for job in list(standing)[: int(0.9 * len(standing))]:
        journal.note(job, "running", inputs="x" * 64, attempt=1)
        journal.note(job, "done", inputs="x" * 64, output="y" * 64, attempt=1, seconds=1.0)
    journal.close()
    start = time.perf_counter()
    found = counts(crossval_status(work).standings.values())
    elapsed = time.perf_counter() - start
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, str(ROOT / "cli.py"), "crossval", str(work.with_name("data")), "--work", str(work), "--status", "--json"],
        check=True, capture_output=True, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    command = time.perf_counter() - start
    return {
        "status_of": sum(found.values()),
        "done": found["done"],
        "status_s": round(elapsed, 3),
        "command_s": round(command, 3),
    }


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
        line |= status_of_many(folder / "many", options.known)
    print(json.dumps(line))


if __name__ == "__main__":
    main()
