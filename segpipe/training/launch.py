"""One fold on several devices: a process each, started and joined by Lightning Fabric, gradients averaged by its DDP."""

import logging
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from multiprocessing.util import Finalize
from queue import Empty
from types import FrameType
from typing import Any

import psutil
import torch
import torch.distributed as dist
from lightning_fabric import Fabric
from lightning_fabric.strategies.ddp import DDPStrategy
from torch.multiprocessing import get_context
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException

from segpipe.errors import SegpipeError, TrainingError, TrainingInterrupted
from segpipe.execution.device import Runtime, choose_runtime
from segpipe.execution.quiet import logger_levels
from segpipe.training.fold import train_here
from segpipe.training.job import FoldJob, Listener
from segpipe.training.ranks import Ranks
from segpipe.training.schema import TrainingRecord

logger = logging.getLogger(__name__)

_AFTER_QUEUES = -100
_LAST_WORDS_S = 10.0
"""How long what processes said before they ended is waited for; one that was killed may have stopped within a word."""

_PORT = "MASTER_PORT"
# How processes find each other is no news for a user.
_QUIET = {"lightning_fabric": logging.WARNING, "torch.multiprocessing.spawn": logging.ERROR}


def train_on_devices(job: FoldJob, runtime: Runtime, listener: Listener) -> TrainingRecord:
    """Train a job on ``job.n_devices`` devices of the runtime's kind; same numbers as one device with the same batch.

    Raises
    ------
    SegpipeError
        What any of the processes raised.
    """
    kind = runtime.device.type
    fabric = Fabric(
        accelerator=kind,
        devices=job.n_devices,
        strategy=_QuietDDP(
            start_method="spawn",
            process_group_backend="nccl" if kind == "cuda" else "gloo",
            # Some networks of others have weights that no head depends on; looking for them takes time.
            find_unused_parameters=job.plan.configuration(job.configuration).network.package is not None,
        ),
    )
    context = get_context("spawn")
    events = context.Queue()
    failures: list[SegpipeError] = []
    records: list[TrainingRecord] = []
    ended = threading.Event()
    hear = threading.Thread(target=_hear, args=(events, ended, listener, records, failures), daemon=True)
    hear.start()
    stopped: list[int] = []
    died: Exception | None = None
    try:
        with _passing_signals_on(stopped), logger_levels(_QUIET), _environment_kept():
            n_threads = max(torch.get_num_threads() // job.n_devices, 1)
            # Bound, because Fabric would take apart a job that it was given as an argument.
            fabric.launch(partial(_one_rank, job=job, runtime=runtime, events=events, n_threads=n_threads))
    except (ProcessRaisedException, ProcessExitedException) as error:
        died = error
    finally:
        ended.set()
        hear.join(_LAST_WORDS_S)
    if failures:
        raise _with_signal(failures[0], stopped)
    if died is not None and stopped:
        raise TrainingInterrupted(
            f"stopped by {signal.Signals(stopped[0]).name} before training began; continue with --resume",
            signal_number=stopped[0],
        ) from died
    if died is not None or not records:
        raise TrainingError(
            f"a process of --devices {job.n_devices} died ({str(died).strip()}); where it was killed, memory ran out most likely; "
            "the last checkpoint is whole: continue with --resume"
        ) from died
    return records[0]


class _QuietDDP(DDPStrategy):
    """DDP whose processes do not report how they find each other."""

    def setup_environment(self) -> None:
        """Join the other processes."""
        with logger_levels(_QUIET):
            super().setup_environment()


@contextmanager
def _environment_kept() -> Iterator[None]:
    """Put back the variable in which Fabric leaves the port that its processes met at."""
    before = os.environ.get(_PORT)
    try:
        yield
    finally:
        os.environ.pop(_PORT, None)
        if before is not None:
            os.environ[_PORT] = before


def _one_rank(fabric: Any, job: FoldJob, runtime: Runtime, events: Any, n_threads: int) -> None:
    """Train one process's share."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # Ctrl-C reaches every process of the terminal; the first one passes it on as SIGTERM, so that all stop at the same iteration.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(n_threads)
    ranks = Ranks(fabric.global_rank, fabric.world_size, dist.new_group(backend="gloo"))
    chosen = choose_runtime(str(fabric.device), deterministic=job.deterministic)
    chosen = replace(chosen, autocast=runtime.autocast)
    told = Listener(
        on_iteration=lambda status: events.put(("on_iteration", (status,))),
        on_epoch=lambda: events.put(("on_epoch", ())),
        note=lambda text: events.put(("note", (text,))),
    )
    try:
        record = train_here(job, chosen, told, ranks, fabric)
    except SegpipeError as error:
        if ranks.first or not isinstance(error, TrainingInterrupted):
            events.put(("failure", (str(error), type(error).__name__, getattr(error, "signal_number", 0))))
        raise
    if ranks.first:
        events.put(("record", (record.to_json(),)))
    # Together, because what is left of their connections would break under one that is still ending.
    dist.barrier()
    dist.destroy_process_group()
    # When all that it had to say is said (queues are emptied at priority -5), and before the interpreter is taken apart: a finished
    # training has ended with SIGABRT there, most likely by a thread of gloo or of the autograd engine that outlived it.
    Finalize(None, _end_now, exitpriority=_AFTER_QUEUES)


def _end_now() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _end_with_parent() -> None:
    """End at once when the first process is killed: it held the fold's lock."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _hear(
    events: Any,
    ended: threading.Event,
    listener: Listener,
    records: list[TrainingRecord],
    failures: list[SegpipeError],
) -> None:
    while True:
        try:
            name, values = events.get(timeout=0.2)
        except Empty:
            if ended.is_set():
                return
            continue
        if name == "record":
            records.append(TrainingRecord.model_validate_json(values[0]))
        elif name == "failure":
            message, kind, number = values
            interrupted = kind == TrainingInterrupted.__name__
            failures.append(
                TrainingInterrupted(message, signal_number=number) if interrupted else TrainingError(message)
            )
        else:
            try:
                getattr(listener, name)(*values)
            except Exception:
                # The training itself is elsewhere, and goes on.
                logger.exception("telling %s", name)


def _with_signal(error: SegpipeError, stopped: list[int]) -> SegpipeError:
    """Name the signal that arrived, where it was passed on as another."""
    if isinstance(error, TrainingInterrupted) and stopped:
        name = signal.Signals(stopped[0]).name
        return TrainingInterrupted(str(error).replace("SIGTERM", name, 1), signal_number=stopped[0])
    return error


@contextmanager
def _passing_signals_on(stopped: list[int]) -> Iterator[None]:
    """Pass SIGTERM and the first SIGINT on to the child processes as SIGTERM; a second SIGINT interrupts at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def pass_on(number: int, _frame: FrameType | None) -> None:
        stopped.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for child in psutil.Process(os.getpid()).children():
            child.terminate()

    before: dict[int, Callable[..., Any] | int | None] = {
        number: signal.signal(number, pass_on) for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
