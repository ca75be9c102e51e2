"""Work as a graph of jobs: each waits for what it needs, finished work is kept, and a failure stops only what depends on it.

A job is a function that leaves an artefact and returns its digest. Its inputs are the digest of the job itself and of the outputs of
all it waits for; while these are the same, it is not done again. Everything that happens is a line of a journal, which one
process writes and any number may read.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from contextlib import suppress
from dataclasses import dataclass, field
from heapq import heappop, heappush
from pathlib import Path
from typing import Any, Literal

from segpipe.core.artefact import json_digest
from segpipe.core.regular import lies, read_text
from segpipe.errors import ClusterError, SegpipeError, TrainingInterrupted, WorkerKilledError

State = Literal["waiting", "running", "done", "failed", "blocked"]
STATES: tuple[State, ...] = ("done", "running", "waiting", "failed", "blocked")
FAILED = "failed"
"""Stands for the output of a job that failed, where another goes on without it."""
_LOOK_S = 0.5
_PASSING = (WorkerKilledError, TrainingInterrupted)
"""Stated reasons that may not hold the next time."""


@dataclass(frozen=True)
class Job:
    """One piece of work."""

    id: str
    function: Callable[..., str]
    """Called with the arguments and its :class:`Inputs`, in any process; returns the digest of what it made. What is there already from
    the same inputs it must find by itself, since whoever asked for it may have been killed before it heard."""
    arguments: tuple[Any, ...] = ()
    needs: tuple[str, ...] = ()
    """Jobs that must have been done."""
    after: tuple[str, ...] = ()
    """Jobs that must have ended, whether they succeeded or not."""
    artefact: Path | None = None
    """A file that is there when the job is done; without it the job is done again."""
    identity: str = ""
    """What else the work follows from."""


@dataclass(frozen=True)
class Inputs:
    """What a job is made from."""

    digest: str
    outputs: Mapping[str, str]
    """Digest of each job that it waited for; those that failed are missing."""


@dataclass
class Standing:
    """Where one job stands."""

    state: State = "waiting"
    inputs: str = ""
    output: str = ""
    attempts: int = 0
    seconds: float = 0.0
    reason: str = ""
    since: float = 0.0


@dataclass
class Journal:
    """Lines of JSON, one an event; the last of a job says how it stands."""

    path: Path
    _descriptor: int | None = field(default=None, repr=False)

    def note(self, job: str, state: State, **details: Any) -> None:
        """Append an event; whole, or, where the machine dies at this moment, as a last line that cannot be read."""
        line = json.dumps({"job": job, "state": state, "at": round(time.time(), 3), **details}) + "\n"
        if self._descriptor is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # Windows would write two characters for the end of a line.
            binary = getattr(os, "O_BINARY", 0)
            self._descriptor = os.open(self.path, os.O_APPEND | os.O_CREAT | os.O_RDWR | binary, 0o644)
            if os.fstat(self._descriptor).st_size:
                os.lseek(self._descriptor, -1, os.SEEK_END)
                line = line if os.read(self._descriptor, 1) == b"\n" else "\n" + line
        os.write(self._descriptor, line.encode())

    def close(self) -> None:
        """Close the file."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def read(self) -> dict[str, Standing]:
        """How each job stands by its last line."""
        found: dict[str, Standing] = {}
        if not lies(self.path):
            return found
        for line in read_text(self.path).splitlines():
            with suppress(ValueError):
                event = json.loads(line)
                standing = found.setdefault(event["job"], Standing())
                standing.state, standing.since = event["state"], event["at"]
                standing.inputs = event.get("inputs", standing.inputs)
                standing.output = event.get("output", "")
                standing.attempts = event.get("attempt", standing.attempts)
                standing.seconds = event.get("seconds", 0.0)
                standing.reason = event.get("reason", "")
        return found


def standings(jobs: Sequence[Job], journal: Journal) -> dict[str, Standing]:
    """How each job of a graph stands, by the journal alone: no artefact is opened."""
    known = journal.read()
    return {job.id: known.get(job.id, Standing()) for job in jobs}


def counts(found: Iterable[Standing]) -> dict[State, int]:
    """Number of jobs in each state."""
    counted = Counter(standing.state for standing in found)
    return {state: counted[state] for state in STATES}


@dataclass(frozen=True)
class JobEvent:
    """What a watcher of a running graph learns of a job."""

    job: Job
    standing: Standing
    n_ended: int
    n_jobs: int


def run_graph(
    jobs: Sequence[Job],
    executor: Executor,
    journal: Journal,
    *,
    retries: int = 1,
    stop: Callable[[], bool] = lambda: False,
    on_event: Callable[[JobEvent], None] = lambda _: None,
    capacity: Callable[[], int] = lambda: 1,
) -> dict[str, Standing]:
    """Do every job that can be done; returns how each stands.

    Parameters
    ----------
    jobs : sequence of Job
        Needed ones before those that need them.
    executor : Executor
        Who does them.
    journal : Journal
        What happened before, and where it is noted.
    retries : int
        How often a job is tried again that failed for a reason segpipe does not state, such as a worker that was killed.
    stop : callable
        Asked now and then; once it says so nothing new is begun, and what runs is left to the executor's owner to stop.
    on_event : callable
        Called with the event of each job that begins, ends or is found done.
    capacity : callable
        How many jobs the executor's workers do at a time; it may change.

    Raises
    ------
    ClusterError
        If the executor's workers, or who gives them jobs, are lost; what is done is kept.
    """
    return _Run(jobs, executor, journal, retries, stop, on_event, capacity).go()


@dataclass
class _Run:
    asked: Sequence[Job]
    executor: Executor
    journal: Journal
    retries: int
    stop: Callable[[], bool]
    on_event: Callable[[JobEvent], None]
    capacity: Callable[[], int]

    def __post_init__(self) -> None:
        self.jobs = {job.id: job for job in self.asked}
        self.known = self.journal.read()
        self.found = {job.id: Standing() for job in self.asked}
        self.open = {job.id: len(set(job.needs) | set(job.after)) for job in self.asked}
        self.dependents: dict[str, list[str]] = {job.id: [] for job in self.asked}
        for job in self.asked:
            for other in {*job.needs, *job.after}:
                self.dependents[other].append(job.id)
        self.running: dict[Future[str], str] = {}
        self.n_ended = 0
        self.order = {job.id: number for number, job in enumerate(self.asked)}
        self.ready: list[tuple[int, str, str, int]] = []

    def go(self) -> dict[str, Standing]:
        self._consider([job for job, n in self.open.items() if not n])
        while not self.stop():
            # No more than there are workers: what is noted as running does run, and the first jobs come first.
            room = self.capacity() - len(self.running)
            for _ in range(min(room, len(self.ready))):
                self._submit(*heappop(self.ready)[1:])
            if not self.running:
                break
            done, _ = wait(self.running, timeout=_LOOK_S, return_when=FIRST_COMPLETED)
            for future in done:
                self._ended(future)
        return self.found

    def _consider(self, due: list[str]) -> None:
        """Take jobs whose time has come among the ready ones, or go on to what depends on them where they need not be done."""
        while due:
            job = self.jobs[due.pop()]
            missing = [other for other in job.needs if self.found[other].state != "done"]
            inputs = self._inputs_of(job)
            known = self.known.get(job.id)
            if missing:
                reason = f"needs {missing[0]}, which {'failed' if self.found[missing[0]].state == 'failed' else 'cannot be done'}"
                self._settle(job, Standing("blocked", reason=reason), due)
            elif (
                known is not None
                and (known.state, known.inputs) == ("done", inputs)
                and (job.artefact is None or job.artefact.exists())
            ):
                self._settle(job, known, due, new=False)
            else:
                heappush(self.ready, (self.order[job.id], job.id, inputs, 1))

    def _inputs_of(self, job: Job) -> str:
        others = [self.found[other] for other in (*job.needs, *job.after)]
        return json_digest([job.id, job.identity, [o.output if o.state == "done" else FAILED for o in others]])

    def _submit(self, name: str, inputs: str, attempt: int) -> None:
        job = self.jobs[name]
        self.found[job.id] = Standing("running", inputs, attempts=attempt, since=time.time())
        self.journal.note(job.id, "running", inputs=inputs, attempt=attempt)
        self.on_event(JobEvent(job, self.found[job.id], self.n_ended, len(self.jobs)))
        waited = {other: self.found[other] for other in (*job.needs, *job.after)}
        given = Inputs(inputs, {other: s.output for other, s in waited.items() if s.state == "done"})
        self.running[self.executor.submit(job.function, *job.arguments, given)] = job.id

    def _ended(self, future: Future[str]) -> None:
        job = self.jobs[self.running.pop(future)]
        begun = self.found[job.id]
        spent = round(time.time() - begun.since, 3)
        try:
            output = future.result()
        except (Exception, KeyboardInterrupt) as error:
            # One job's failure is a result; the others go on.
            if self.stop():
                # A signal to all processes also ends jobs that do not listen to it.
                self._put_back(job)
                return
            if isinstance(error, ClusterError):
                # Nobody is left to do the others.
                raise
            stated = isinstance(error, SegpipeError) and not isinstance(error, _PASSING)
            reason = str(error) if isinstance(error, SegpipeError) else f"{type(error).__name__}: {error}"
            if not stated and begun.attempts <= self.retries:
                self.journal.note(job.id, "failed", inputs=begun.inputs, attempt=begun.attempts, reason=reason)
                self._submit(job.id, begun.inputs, begun.attempts + 1)
                return
            standing = Standing("failed", begun.inputs, "", begun.attempts, spent, reason)
        else:
            standing = Standing("done", begun.inputs, output, begun.attempts, spent)
        due: list[str] = []
        self._settle(job, standing, due)
        self._consider(due)

    def _put_back(self, job: Job) -> None:
        """A job that was told to stop will be continued."""
        self.found[job.id] = Standing()
        self.journal.note(job.id, "waiting")

    def _settle(self, job: Job, standing: Standing, due: list[str], *, new: bool = True) -> None:
        """Take down how a job ended, and collect the jobs that waited for nothing else."""
        self.found[job.id] = standing
        self.n_ended += 1
        if new:
            details: Mapping[str, Any] = {
                "inputs": standing.inputs, "output": standing.output, "attempt": standing.attempts,
                "seconds": standing.seconds, "reason": standing.reason,
            }  # fmt: skip
            self.journal.note(job.id, standing.state, **{name: value for name, value in details.items() if value})
        self.on_event(JobEvent(job, standing, self.n_ended, len(self.jobs)))
        for other in self.dependents[job.id]:
            self.open[other] -= 1
            if not self.open[other]:
                due.append(other)
