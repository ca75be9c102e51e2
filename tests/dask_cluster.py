"""A real Dask scheduler and workers on this machine, each a process of its own, for tests."""

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Cluster:
    """What was started."""

    address: str
    folder: Path
    scheduler: subprocess.Popen
    workers: list[subprocess.Popen] = field(default_factory=list)

    def add_worker(self, *options: str) -> subprocess.Popen:
        command = [
            sys.executable,
            "-m",
            "distributed.cli.dask_worker",
            self.address,
            "--no-dashboard",
            "--host",
            "127.0.0.1",
        ]
        options = options or ("--nthreads", "1", "--no-nanny")
        log = (self.folder / f"worker_{len(self.workers)}.log").open("w", encoding="utf-8")
        with log:
            worker = subprocess.Popen(
                [*command, *options], cwd=self.folder, stdout=log, stderr=subprocess.STDOUT, env=_environment()
            )
        self.workers.append(worker)
        return worker

    def wait_for(self, n: int) -> None:
        from distributed import Client

        with Client(self.address, set_as_default=False) as client:
            client.wait_for_workers(n, timeout=60)


def _environment() -> dict[str, str]:
    """Tests' own functions travel by reference: workers must be able to import them, and the scheduler, which unpacks them too."""
    return os.environ | {
        "PYTHONPATH": os.pathsep.join((str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")))
    }


@contextmanager
def dask_cluster(folder: Path, n_workers: int):
    file = folder / "scheduler.json"
    command = [
        sys.executable,
        "-m",
        "distributed.cli.dask_scheduler",
        "--host",
        "127.0.0.1",
        "--port",
        "0",
        "--no-dashboard",
    ]
    log = (folder / "scheduler.log").open("w", encoding="utf-8")
    with log:
        scheduler = subprocess.Popen(
            [*command, "--scheduler-file", str(file)],
            cwd=folder,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=_environment(),
        )
    cluster = None
    try:
        deadline = time.monotonic() + 60
        while not file.is_file() or not file.read_text(encoding="utf-8").strip():
            assert time.monotonic() < deadline, "the scheduler did not start"
            time.sleep(0.1)
        import json

        cluster = Cluster(json.loads(file.read_text(encoding="utf-8"))["address"], folder, scheduler)
        for _ in range(n_workers):
            cluster.add_worker()
        if n_workers:
            cluster.wait_for(n_workers)
        yield cluster
    finally:
        for process in (*(cluster.workers if cluster else ()), scheduler):
            # A nanny that is killed cannot end its worker.
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
