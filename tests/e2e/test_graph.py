"""Work as a graph: what is kept, what is done again, what a failure stops; on local processes and on a Dask cluster."""

import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from segpipe.errors import ClusterError, CrossvalError, WorkerKilledError
from segpipe.execution.graph import Job, Journal, run_graph
from segpipe.execution.processes import LocalWorkers, map_cases, open_executor
from tests.dask_cluster import dask_cluster
from tests.helpers.graph import double, fail, lines, run, write

pytest.importorskip("distributed")


def die_once(folder: Path, inputs) -> str:
    if not (folder / "died").exists():
        (folder / "died").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return "ok"


def die(folder: Path) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def slow(folder: Path, name: str, inputs) -> str:
    """Say that it began, wait, and finish once: what is there is found, whoever asked for it."""
    if name in lines(folder / "finished.txt"):
        return name
    with (folder / "begun.txt").open("a", encoding="utf-8") as file:
        file.write(f"{name} {os.getpid()}\n")
    time.sleep(0.8)
    with (folder / "finished.txt").open("a", encoding="utf-8") as file:
        file.write(f"{name}\n")
    return name


def slow_getenv(name: str) -> str | None:
    time.sleep(0.5)
    return os.getenv(name)


def test_a_killed_process_takes_no_other_job_with_it(tmp_path):
    jobs = [Job("dies", die_once, (tmp_path,)), *(Job(f"s{n}", slow, (tmp_path, f"s{n}")) for n in range(3))]
    with open_executor(None, 2) as executor:
        journal = Journal(tmp_path / "jobs.jsonl")
        found = run_graph(jobs, executor, journal, capacity=executor.capacity)
        journal.close()
    assert {s.state for s in found.values()} == {"done"}
    assert found["dies"].attempts == 2
    assert sorted(lines(tmp_path / "finished.txt")) == ["s0", "s1", "s2"]
    events = [json.loads(line) for line in lines(tmp_path / "jobs.jsonl")]
    assert any(e["job"] == "dies" and e["state"] == "failed" and "SIGKILL" in e["reason"] for e in events)


def test_without_retries_a_killed_process_is_told(tmp_path):
    workers = LocalWorkers(1)
    with pytest.raises(WorkerKilledError, match="SIGKILL"):
        workers.submit(die_once, tmp_path, None).result()
    assert workers.submit(double, 4).result() == 8, "the next job has a new process"
    workers.shutdown()


def test_workers_see_their_own_environment():
    with open_executor(
        None, 2, environments=[{"CUDA_VISIBLE_DEVICES": "5"}, {"CUDA_VISIBLE_DEVICES": "7"}]
    ) as executor:
        both = [executor.submit(slow_getenv, "CUDA_VISIBLE_DEVICES") for _ in range(2)]
        assert {future.result() for future in both} == {"5", "7"}


def kill_a_busy_one(folder: Path, killed: list[str], over: threading.Event) -> None:
    """Kill a worker in the middle of the third job or a later one, unless all is over before."""
    while not killed and not over.is_set():
        begun = [line.split() for line in lines(folder / "begun.txt")]
        name, pid = begun[-1] if begun else ("", "")
        if len(begun) >= 3 and name not in lines(folder / "finished.txt"):
            os.kill(int(pid), signal.SIGKILL)
            killed.append(name)
        time.sleep(0.02)


@pytest.mark.slow
def test_a_dask_worker_killed_in_mid_job_loses_nothing(tmp_path):
    """The same jobs as on local processes, the same outputs; each finished once, though one was begun twice."""
    jobs = [Job(f"s{n}", slow, (tmp_path, f"s{n}")) for n in range(6)]
    jobs.append(Job("last", write, (tmp_path, "last"), needs=tuple(job.id for job in jobs)))
    with dask_cluster(tmp_path, 2) as cluster, open_executor(cluster.address, 2) as executor:
        assert executor.capacity() == 2
        journal, killed, over = Journal(tmp_path / "jobs.jsonl"), [], threading.Event()
        killer = threading.Thread(target=kill_a_busy_one, args=(tmp_path, killed, over), daemon=True)
        killer.start()
        try:
            found = run_graph(jobs, executor, journal, capacity=executor.capacity)
        finally:
            over.set()
            killer.join()
        journal.close()
    assert killed
    assert {s.state for s in found.values()} == {"done"}
    assert sorted(lines(tmp_path / "finished.txt")) == [f"s{n}" for n in range(6)]
    assert len(lines(tmp_path / "done.txt")) == 1
    assert len(lines(tmp_path / "begun.txt")) == 7, "the killed one was begun again"
    elsewhere = tmp_path / "local"
    elsewhere.mkdir()
    again = [Job(job.id, job.function, (elsewhere, *job.arguments[1:]), job.needs) for job in jobs]
    assert {job: s.output for job, s in run(again, elsewhere).items()} == {job: s.output for job, s in found.items()}


def kill_at_the_second(cluster, folder: Path, over: threading.Event) -> None:
    """Kill the scheduler once a second job has begun."""
    while len(lines(folder / "begun.txt")) < 2 and not over.wait(0.02):
        pass
    cluster.scheduler.kill()


@pytest.mark.slow
def test_a_scheduler_killed_in_mid_job_ends_the_run_and_the_next_one_goes_on(tmp_path):
    jobs = [Job(f"s{n}", slow, (tmp_path, f"s{n}")) for n in range(4)]
    journal = Journal(tmp_path / "jobs.jsonl")
    with dask_cluster(tmp_path, 1) as cluster, open_executor(cluster.address, 1) as executor:
        over = threading.Event()
        killer = threading.Thread(target=kill_at_the_second, args=(cluster, tmp_path, over), daemon=True)
        killer.start()
        with pytest.raises(ClusterError, match=r"the scheduler is lost .* the same command continues"):
            run_graph(jobs, executor, journal, capacity=executor.capacity)
        over.set()
        killer.join()
        for ask in (lambda: executor.submit(double, 1), executor.capacity):
            with pytest.raises(ClusterError, match="the scheduler is lost"):
                ask()
    journal.close()
    done = lines(tmp_path / "finished.txt")
    assert 1 <= len(done) < 4
    found = run(jobs, tmp_path)
    assert {s.state for s in found.values()} == {"done"}
    assert sorted(lines(tmp_path / "finished.txt")) == ["s0", "s1", "s2", "s3"]


@pytest.mark.slow
def test_on_a_cluster_what_a_job_raises_is_passed_on_and_what_kills_its_workers_is_told(tmp_path, caplog):
    with dask_cluster(tmp_path, 1) as cluster, open_executor(cluster.address, 1) as executor:
        with pytest.raises(CrossvalError, match="cannot be done"):
            executor.submit(fail, tmp_path, None).result(timeout=60)
        waiting = executor.submit(slow, tmp_path, "waiting", None)
        behind = executor.submit(slow, tmp_path, "behind", None)
        assert behind.cancel()
        assert waiting.result(timeout=60) == "waiting"
        killed = executor.submit(die, tmp_path)
        for _ in range(3):
            cluster.workers[-1].wait(timeout=60)
            cluster.add_worker()
        with pytest.raises(WorkerKilledError, match="one after the other"):
            killed.result(timeout=60)
        cluster.workers[-1].wait(timeout=60)
        deadline = time.monotonic() + 30
        while executor.count() and time.monotonic() < deadline:
            time.sleep(0.1)
        assert executor.count() == 0, "the scheduler noticed"
        executor._asked = -math.inf
        assert executor.capacity() == 1
    assert "there is no worker; jobs wait until there is one" in caplog.text
    assert "behind" not in lines(tmp_path / "finished.txt")


@pytest.mark.slow
def test_what_is_wrong_with_a_cluster_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr("segpipe.execution.cluster._ANSWER_S", 5)
    with pytest.raises(ClusterError, match="expected the address of a scheduler"), open_executor("here", 1):
        pass
    with dask_cluster(tmp_path, 0) as cluster:
        with (
            pytest.raises(ClusterError, match="has no worker; start some with `dask worker tcp"),
            open_executor(cluster.address, 1),
        ):
            pass
        good = cluster.add_worker("--nthreads", "1", "--no-nanny", "--memory-limit", "2GB")
        cluster.wait_for(1)
        with (
            pytest.raises(ClusterError, match=r"has 2.0 GB, of which Dask lets a job use 80%, and one is .* 1.7 GB"),
            open_executor(cluster.address, 1, bytes_each=1_700_000_000),
        ):
            pass
        with monkeypatch.context() as patched:
            patched.setattr("segpipe.execution.cluster.__version__", "0.0.0")
            with (
                pytest.raises(ClusterError, match=r"the scheduler has segpipe .*, and 0\.0\.0 is here"),
                open_executor(cluster.address, 1),
            ):
                pass
        with open_executor(cluster.address, 1, bytes_each=1_500_000_000) as executor:
            # Those that come later are looked at too.
            cluster.add_worker("--nthreads", "2", "--no-nanny")
            cluster.wait_for(2)
            with pytest.raises(ClusterError, match="does 2 jobs at a time"):
                executor.count()
        assert good.poll() is None
    with pytest.raises(ClusterError, match="no scheduler answers"), open_executor(cluster.address, 1):
        pass


@pytest.mark.slow
def test_cases_are_mapped_over_a_cluster(tmp_path):
    with dask_cluster(tmp_path, 1) as cluster, open_executor(cluster.address, 1) as executor:
        found = {o.item: o.value for o in map_cases(double, [1, 2, 3], workers=executor, bytes_each=1)}
    assert found == {1: 2, 2: 4, 3: 6}


SBATCH = """#!/bin/bash
# Runs what it is given here, in the background, and keeps a copy as SLURM does: the file is gone when this returns.
cp "$1" "$0.$$" && cat "$1" >> "$(dirname "$0")/asked.txt"
nohup bash "$0.$$" > "$0.$$.log" 2>&1 &
echo "Submitted batch job $!"
"""
JOBQUEUE = """jobqueue:
  slurm:
    cores: 1
    memory: 2GB
    walltime: "00:10:00"
    job-extra-directives: ["--gres=gpu:1"]
"""


@pytest.mark.slow
def test_slurm_is_asked_for_workers_with_one_gpu_each(tmp_path):
    """With a stand-in for sbatch that runs the job's script here; in a process of its own, since Dask reads its settings once."""
    (tmp_path / "sbatch").write_text(SBATCH, encoding="utf-8")
    (tmp_path / "scancel").write_text("#!/bin/bash\nkill $@ || true\n", encoding="utf-8")
    for name in ("sbatch", "scancel"):
        (tmp_path / name).chmod(0o755)
    (tmp_path / "jobqueue.yaml").write_text(JOBQUEUE, encoding="utf-8")
    code = """
import os, signal, segpipe.execution.cluster
from segpipe.errors import ClusterError
from segpipe.execution.processes import open_executor
from tests.helpers.graph import double, slow_pids

segpipe.execution.cluster._REPLACE_S = 0.5
try:
    with open_executor("slurm", 2) as executor:
        print([executor.submit(double, n).result() for n in range(3)])
        found = set()
        while len(found) < 2:
            found |= {future.result() for future in [executor.submit(slow_pids) for _ in range(2)]}
        for worker, nanny in found:
            os.kill(nanny, signal.SIGKILL)
            os.kill(worker, signal.SIGKILL)
        print("replaced", not {executor.submit(slow_pids).result()} & found)
except ClusterError as error:
    print(f"{error}")
"""
    root = Path(__file__).parents[2]
    environment = {"DASK_CONFIG": str(tmp_path), "PYTHONPATH": str(root), "HOME": str(tmp_path)}
    with_sbatch = os.environ | environment | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    ran = subprocess.run(
        [sys.executable, "-c", code],
        env=with_sbatch,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=tmp_path,
        encoding="utf-8",
    )
    assert "[0, 2, 4]" in ran.stdout, ran.stderr
    assert "replaced True" in ran.stdout, "SLURM is asked for others when workers' time is over"
    asked = (tmp_path / "asked.txt").read_text(encoding="utf-8")
    assert "#SBATCH --gres=gpu:1" in asked
    assert "--nthreads 1" in asked
    without = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=tmp_path,
        encoding="utf-8",
    )
    assert "there is no sbatch here" in without.stdout
    (tmp_path / "sbatch").write_text(
        "#!/bin/bash\necho 'invalid partition specified: gpu' >&2\nexit 1\n", encoding="utf-8"
    )
    refused = subprocess.run(
        [sys.executable, "-c", code],
        env=with_sbatch,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=tmp_path,
        encoding="utf-8",
    )
    assert "a worker could not be asked for" in refused.stdout
    assert "invalid partition specified: gpu); see that sbatch takes" in refused.stdout
    assert "Traceback" not in refused.stderr
