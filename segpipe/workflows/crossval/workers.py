"""Processes for the jobs of a cross-validation on this machine: one per GPU, or what processors and memory allow."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
from loky import cpu_count

from segpipe.execution.capacity import worker_count
from segpipe.execution.device import choose_runtime


@dataclass(frozen=True)
class LocalPlan:
    """Processes for jobs on this machine."""

    environments: tuple[dict[str, str], ...]
    """Environment of each process."""
    threads: int
    """Threads of each process."""
    device: str
    """Device of a job: each process sees its own GPU alone."""

    @property
    def n_workers(self) -> int:
        """Number of processes."""
        return len(self.environments)


def plan_workers(device: str, n_jobs: int, bytes_each: int, *, workers: int | None, threads: int | None) -> LocalPlan:
    """One process a GPU; on a CPU as many as its processors, the jobs and the free memory allow.

    Parameters
    ----------
    device : str
        auto, cpu, cuda or cuda:N.
    n_jobs : int
        Jobs that there are to do.
    bytes_each : int
        Forecast of what a job holds at most.
    workers, threads : int, optional
        Most processes, and threads of each, instead of a share of the processors.

    Raises
    ------
    DeviceError
        If the device is not there.
    """
    chosen = choose_runtime(device).device
    if chosen.type == "cuda":
        gpus = _visible_gpus()
        mine = gpus if device == "auto" or chosen.index is None else gpus[chosen.index : chosen.index + 1]
        own = [{"CUDA_VISIBLE_DEVICES": name} for name in mine[: max(min(workers or len(mine), n_jobs), 1)]]
    else:
        own = [{} for _ in range(worker_count(workers, n_jobs, bytes_each))]
    each = threads or max(cpu_count() // len(own), 1)
    shared = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), str(each))
    return LocalPlan(tuple(shared | one for one in own), each, "cuda" if chosen.type == "cuda" else device)


def _visible_gpus() -> list[str]:
    """GPUs that this process may use, as they are called in its environment."""
    named = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return named or [str(n) for n in range(torch.cuda.device_count())]
