"""What a job of a study is, and all that it may look at."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from segpipe.core.artefact import Artefact
from segpipe.core.progress import Watch
from segpipe.core.regular import lies
from segpipe.core.workspace import Workspace
from segpipe.crossvalidation.folder import CrossvalFolder, StudyFolder
from segpipe.crossvalidation.schema import CandidatePlan, CrossvalDesign, OuterFold
from segpipe.errors import ArtefactError, CrossvalError, ModelError
from segpipe.execution.graph import Inputs
from segpipe.workflows.project import Project

if TYPE_CHECKING:
    from collections.abc import Collection

    from segpipe.dataset.schema import Case
    from segpipe.evaluation.schema import Evaluation
    from segpipe.planning.schema import Plan


class Done(Artefact):
    """That a job is done."""

    inputs: str
    output: str
    seconds: float


@dataclass(frozen=True)
class Task:
    """Which job of which cross-validation."""

    kind: str
    root: Path
    """The workspace of the whole dataset."""
    study: str
    candidate: int | None = None
    fold: int | None = None
    configuration: str | None = None
    device: str = "auto"
    threads: int | None = None
    """Threads of a job; None for all that its worker may use."""

    @property
    def name(self) -> str:
        """Within its study."""
        parts = [self.kind, self.candidate, None if self.fold is None else f"fold_{self.fold}", self.configuration]
        return "_".join(str(part) for part in parts if part is not None)

    @property
    def id(self) -> str:
        """Within the cross-validation."""
        return f"{self.study}/{self.name}"

    def sibling(self, kind: str, *, candidate: int | None = None, fold: int | None = None) -> Task:
        """Another job of the same study."""
        return replace(self, kind=kind, candidate=candidate, fold=fold, configuration=None)


class Notes(Watch):
    """Notes of a job, as lines of a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def note(self, text: str) -> None:
        """Write a line."""
        with self.path.open("a", encoding="utf-8", newline="\n") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")


@dataclass(frozen=True)
class Work:
    """A job with all that it may look at."""

    task: Task
    inputs: Inputs
    design: CrossvalDesign
    study: OuterFold
    main: CrossvalFolder
    folder: StudyFolder
    watch: Watch

    @property
    def workspace(self) -> Workspace:
        """Workspace of the study."""
        return self.folder.workspace

    @cached_property
    def project(self) -> Project:
        """The study as a project of its own: one process does all of a job."""
        return Project(self.workspace.root, self.workspace, self.watch, self.task.device, 1, self.design.deterministic)

    def candidate(self, number: int) -> CandidatePlan:
        """What became of a candidate."""
        return CandidatePlan.read(self.folder.candidate(number))

    def plan_of(self, chosen: CandidatePlan) -> Plan:
        """A candidate's plan."""
        from segpipe.planning.schema import Plan

        path = self.workspace.plan_of(chosen.variant)
        plan = Plan.read(path)
        if plan.digest() != chosen.plan_digest:
            raise ArtefactError(
                f"{path}: is not the plan that {chosen.candidate.text} was made by; delete {self.folder.root} to begin it anew"
            )
        return plan

    def complete(self) -> dict[int, CandidatePlan]:
        """Candidates of which every inner fold was trained and scored, by number."""
        from segpipe.crossvalidation.design import n_candidates

        found = {}
        for number in range(n_candidates(self.design)):
            folds = [self.task.sibling("train", candidate=number, fold=k) for k in range(len(self.study.inner))]
            if all(fold.id in self.inputs.outputs for fold in folds):
                found[number] = self.candidate(number)
        return found

    def evaluations(self, chosen: CandidatePlan) -> list[Evaluation]:
        """Scores of what a candidate's inner folds held out."""
        from segpipe.evaluation.schema import Evaluation

        places = [
            self.workspace.place(chosen.candidate.configuration, chosen.variant, k)
            for k in range(len(self.study.inner))
        ]
        return [Evaluation.read(self.workspace.evaluation / place.with_suffix(".json")) for place in places]

    def cases(self, ids: Collection[str]) -> list[Case]:
        """Cases of the dataset, by their ids.

        Raises
        ------
        CrossvalError
            If a file is not the one that was read when the cases were divided.
        """
        from segpipe.dataset.schema import Dataset, FileStamp

        found = list(Dataset.read(self.main.workspace.dataset).only(frozenset(ids)).cases)
        for case in found:
            for stamp in (*case.images, *((case.label,) if case.label is not None else ())):
                if not stamp.path.exists() or FileStamp.of(stamp.path) != stamp:
                    raise CrossvalError(
                        f"case {case.id!r}: {stamp.path} has changed since the cases were divided, or is gone; the same command looks "
                        "whether its content has"
                    )
        return found

    def model_of(self, chosen: CandidatePlan) -> Path:
        """Model file of a candidate's inner folds.

        Raises
        ------
        ModelError
            If it is not there.
        """
        path = self.workspace.model(chosen.candidate.configuration, chosen.variant)
        if not lies(path):
            raise ModelError(f"{path}: no such model; delete the folder of its jobs to have it trained again")
        return path
