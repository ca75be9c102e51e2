"""A dataset with its workspace, as every step of a command is given it: each artefact is read once."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from segpipe.core.progress import SILENT, Watch
from segpipe.core.regular import lies
from segpipe.core.system_names import real_path
from segpipe.core.whole import write_atomically
from segpipe.core.workspace import Workspace
from segpipe.core.writable import require_writable
from segpipe.errors import SegpipeError
from segpipe.version import __version__
from segpipe.workflows.identity import require_same_dataset
from segpipe.workflows.said import dataset_lines

if TYPE_CHECKING:
    from segpipe.dataset.fingerprint.schema import Fingerprint
    from segpipe.dataset.schema import Dataset
    from segpipe.dataset.splits import Splits
    from segpipe.execution.device import Runtime
    from segpipe.execution.processes import Workers
    from segpipe.workflows.notes import Options
    from segpipe.workflows.options import CompareOptions, NetworksOptions, OnDataset


@dataclass
class Project:
    """A dataset, where its results are kept, who computes, and who is shown progress."""

    dataset: Path
    workspace: Workspace
    watch: Watch = SILENT
    device: str = "auto"
    workers: Workers = None
    """Most worker processes, or whose."""
    deterministic: bool = False
    """Whether the same bytes are wanted twice."""

    @classmethod
    def open(cls, options: OnDataset | CompareOptions | NetworksOptions, watch: Watch) -> Project:
        """Open the workspace of a command's dataset; nothing is written.

        Raises
        ------
        SegpipeError
            If it would lie in the dataset's own folder, holds another dataset, or cannot be written.
        """
        assert options.dataset is not None
        workspace = workspace_of(options.dataset, options.work)
        moved = require_same_dataset(options.dataset, workspace)
        if moved is not None:
            watch.note(moved)
        require_writable(workspace.root, "workspace")
        device, jobs = getattr(options, "device", "auto"), getattr(options, "jobs", None)
        return cls(options.dataset, workspace, watch, device, jobs, getattr(options, "deterministic", False))

    @cached_property
    def runtime(self) -> Runtime:
        """Device and precision of this project's networks."""
        from segpipe.execution.device import choose_runtime

        return choose_runtime(self.device, deterministic=self.deterministic)

    @cached_property
    def matched(self) -> Dataset:
        """The dataset's files, from dataset.json."""
        from segpipe.dataset.schema import Dataset

        return Dataset.read(self.workspace.dataset)

    @cached_property
    def measured(self) -> Fingerprint:
        """Measurements of the cases, from fingerprint.json."""
        from segpipe.dataset.fingerprint.schema import Fingerprint

        return Fingerprint.read(self.workspace.fingerprint)

    @cached_property
    def splits(self) -> Splits:
        """Folds of the usable cases; made where there are none yet."""
        from segpipe.dataset.splits import read_or_make

        return read_or_make(self.workspace.splits, self.measured.groups, self.measured.digest())

    def measure(self, *, resample_channels: bool | None = None, grouped_later: bool = False) -> Fingerprint:
        """Check and measure the dataset; writes dataset.json, fingerprint.json and the decoded cases.

        It is reported how cases are kept together, unless that is decided and reported later.
        """
        from segpipe.dataset.fingerprint.run import measure
        from segpipe.dataset.match import match_again

        for name in ("matched", "measured", "splits"):
            self.__dict__.pop(name, None)
        with self.watch.counting("checking and measuring", None) as done:
            before = self.matched if lies(self.workspace.dataset) else None
            if resample_channels is None and before is not None:
                resample_channels = before.resample_channels
            found = match_again(self.dataset, self.workspace, resample_channels)
            matched = found if before is None else _named_as(before, found)
            self.measured = measure(matched, self.workspace, before=before, workers=self.workers, on_case=done)
            self.matched = matched
        for line in dataset_lines(self.matched, self.measured, grouping=not grouped_later):
            self.watch.note(line)
        return self.measured

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Prepare while nobody else does: two folds may be started at the same time, the second then finds all done."""
        from segpipe.execution.locks import locked

        with locked(self.workspace.root, wait=True, note=self.watch.note):
            yield


def _named_as(before: Dataset, found: Dataset) -> Dataset:
    """Return a dataset that is called after its folder under the name that the workspace's results know: folders are renamed."""
    folder = found.root if found.root.is_dir() else found.root.parent
    return found.model_copy(update={"name": before.name}) if found.name == folder.name else found


def workspace_of(dataset: Path, work: Path | None) -> Workspace:
    """Return the workspace of a dataset.

    Raises
    ------
    SegpipeError
        If it would lie in the dataset's own folder, where nothing may be written.
    """
    source = real_path(dataset)
    folder = source if source.is_dir() else source.parent
    if work is None:
        from segpipe.dataset.match import match_dataset

        name = re.sub(r"[^\w.-]+", "_", match_dataset(source).name).strip(".") or folder.name
        work = Path("runs") / name
    if source.is_dir() and real_path(work).is_relative_to(folder):
        raise SegpipeError(f"workspace {work}: lies in the dataset's own folder {folder}; give another with --work")
    if real_path(work) == folder:
        raise SegpipeError(f"workspace {work}: is the folder of the manifest; give another with --work")
    return Workspace(work)


def write_asked(folder: Path, command: str, options: Options) -> None:
    """Write how a run was asked for beside what it makes, as asked.json."""
    asked = {"command": command, "segpipe": __version__, "options": options.plain()}
    write_atomically(folder / "asked.json", (json.dumps(asked, indent=1) + "\n").encode())
