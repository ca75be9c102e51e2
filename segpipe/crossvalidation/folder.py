"""Where everything of a cross-validation is written. Every path is a property; nothing is created here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from segpipe.core.system_names import below
from segpipe.core.workspace import Workspace

WINNER = "winner"
"""Stands for what a study chose, where a candidate has its number."""


@dataclass(frozen=True)
class StudyFolder:
    """One study: a workspace that knows its own cases alone, and what was chosen there."""

    root: Path
    decoded: Path
    """Decoded cases, each of which holds nothing of the others."""

    @property
    def workspace(self) -> Workspace:
        """Where its networks are trained."""
        return Workspace(self.root, self.decoded)

    @property
    def selection(self) -> Path:
        """selection.json."""
        return self.root / "selection.json"

    @property
    def model(self) -> Path:
        """The winner, packed."""
        return self.root / "model.segpipe"

    def candidate(self, number: int) -> Path:
        """What became of a candidate in this study: its variant, its epochs."""
        return self.root / "candidates" / f"{number}.json"

    def proposal(self, number: int) -> Path:
        """What a search proposed."""
        return self.root / "candidates" / f"{number}.proposal.json"

    def ensemble(self, numbers: tuple[int, ...], fold: int) -> Path:
        """Folder of an ensemble's segmentations of an inner fold's held-out cases."""
        return self.root / "ensembles" / "_".join(map(str, numbers)) / f"fold_{fold}"

    def test(self, name: str) -> Path:
        """Folder of the test cases' segmentations, by the winner or a candidate."""
        return below(self.root / "test", name)

    def job(self, name: str) -> Path:
        """Folder of one job's record, lock and notes."""
        return below(self.root / "jobs", name)


@dataclass(frozen=True)
class CrossvalFolder:
    """One cross-validation."""

    workspace: Workspace
    """Workspace of the whole dataset: its cases, decoded, and which can be used."""

    @property
    def root(self) -> Path:
        """Folder of everything below."""
        return self.workspace.root / "crossval"

    @property
    def design(self) -> Path:
        """design.json."""
        return self.root / "design.json"

    @property
    def splits(self) -> Path:
        """splits.json."""
        return self.root / "splits.json"

    @property
    def nnunet_splits(self) -> Path:
        """The outer folds, as nnU-Net reads them; those of each study lie beside."""
        return self.root / "splits_final.json"

    @property
    def journal(self) -> Path:
        """What happened, line by line."""
        return self.root / "jobs.jsonl"

    @property
    def result(self) -> Path:
        """result.json."""
        return self.root / "result.json"

    @property
    def table(self) -> Path:
        """A row for each test case and label."""
        return self.root / "cases.csv"

    @property
    def methods(self) -> Path:
        """What was done, in words."""
        return self.root / "methods.md"

    @property
    def page(self) -> Path:
        """The report."""
        return self.root / "report.html"

    @property
    def model(self) -> Path:
        """The model of all cases."""
        return self.root / "model.segpipe"

    def speed(self, configuration: str, variant: str) -> Path:
        """How fast a network computes, whatever the study."""
        return below(self.root / "speeds", configuration, f"{variant}.json")

    def study(self, name: str) -> StudyFolder:
        """Files of one study."""
        return StudyFolder(below(self.root, name), self.workspace.root / "cases")
