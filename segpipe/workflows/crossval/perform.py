"""A job done, once: in any process, on any machine that sees the same files."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from segpipe.core.regular import lies, read_text
from segpipe.core.workspace import Workspace
from segpipe.crossvalidation.folder import CrossvalFolder
from segpipe.crossvalidation.schema import CrossvalDesign, CrossvalSplits
from segpipe.errors import ArtefactError, CrossvalError, SegpipeError
from segpipe.execution.graph import Inputs
from segpipe.execution.locks import locked
from segpipe.version import __version__
from segpipe.workflows.crossval.work import Done, Notes, Task, Work


def perform(task: Task, inputs: Inputs) -> str:
    """Do a job unless it is done, alone; returns the digest of what it made."""
    main = CrossvalFolder(Workspace(task.root))
    folder = main.study(task.study)
    place = folder.job(task.name)
    # Where the one that asked was killed, or a scheduler gave a worker up too early, another may still be at it.
    notes = Notes(place / "notes.txt")
    with locked(place, wait=True, note=notes.note):
        kind = _kind_of(task)
        record, begun = place / "done.json", place / "begun"
        known = _done(record)
        if known is not None and known.inputs == inputs.digest:
            return known.output
        record.unlink(missing_ok=True)
        design, splits = CrossvalDesign.read(main.design), CrossvalSplits.read(main.splits)
        splits.require_apart()
        if design.software != __version__:
            raise CrossvalError(
                f"{task.id}: segpipe {__version__} is here, and {design.software} began this cross-validation; "
                "install that one on every worker"
            )
        work = Work(task, inputs, design, splits.study(task.study), main, folder, notes)
        if not lies(begun) or read_text(begun) != inputs.digest:
            # What lies there was made from something else.
            kind.clear(work)
            begun.write_text(inputs.digest, encoding="utf-8", newline="\n")
        start = time.monotonic()
        try:
            with _processors(task.threads):
                output = kind.do(work)
        except Exception as error:
            told = str(error) if isinstance(error, SegpipeError) else traceback.format_exc()
            work.watch.note(f"{type(error).__name__}: {told}")
            raise
        Done(inputs=inputs.digest, output=output, seconds=round(time.monotonic() - start, 2)).write(record)
    return output


def _done(record: Path) -> Done | None:
    try:
        return Done.read(record) if lies(record) else None
    except ArtefactError:
        return None


def _processors(threads: int | None) -> AbstractContextManager[None]:
    from loky import cpu_count

    from segpipe.execution.torch_state import cpu_threads

    return cpu_threads(threads or cpu_count())


def _nothing(_: Work) -> None:
    """There is nothing to clear: what is made is written over."""


@dataclass(frozen=True)
class _Kind:
    do: Callable[[Work], str]
    clear: Callable[[Work], None] = _nothing
    """Takes away what was made from other inputs."""


def _kind_of(task: Task) -> _Kind:
    """Return how a job is done; what that needs, torch among it, is imported by the process that does it."""
    from segpipe.workflows.crossval import choose, prepare, test, train

    kinds = {
        "measure": _Kind(prepare.measure),
        "candidate": _Kind(prepare.candidate),
        "prepare": _Kind(prepare.prepare),
        "train": _Kind(train.train, train.clear_fold),
        "ensemble": _Kind(choose.ensemble, choose.clear_ensemble),
        "select": _Kind(choose.select),
        "model": _Kind(choose.model, choose.clear_refit),
        "test": _Kind(test.test, test.clear_test),
        "test_candidate": _Kind(test.test_candidate, test.clear_test),
    }
    return kinds[task.kind]
