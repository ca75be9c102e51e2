"""The dataset artefact: which files belong to which case."""

from collections.abc import Collection
from pathlib import Path
from typing import Literal

from segpipe.core.artefact import Artefact, CaseName, Record, RecordedPath, added_later, json_digest
from segpipe.core.given import Given
from segpipe.core.labels import Labels
from segpipe.io.formats import files_behind

Layout = Literal["nnunet", "decathlon", "pairs", "manifest"]
Severity = Literal["error", "warning", "note"]


class FileStamp(Record):
    """An image's file, or its folder of DICOM files, with what changes when its content does."""

    path: RecordedPath
    size_bytes: int
    modified_ns: int
    listing: str = ""
    """Digest of names, sizes and times, where several files make the image."""

    @classmethod
    def of(cls, path: Path) -> "FileStamp":
        """Stamp an existing file; a folder by all the files that make its image."""
        states = {str(file): file.stat() for file in files_behind(path)}
        listing = [[name, s.st_size, s.st_mtime_ns] for name, s in states.items()]
        return cls(
            path=path,
            size_bytes=sum(s.st_size for s in states.values()),
            modified_ns=max((s.st_mtime_ns for s in states.values()), default=0),
            listing=json_digest(listing) if len(listing) > 1 else "",
        )


class Case(Record):
    """One subject's images (one file a channel, or one file with all channels) and its label file."""

    id: CaseName
    images: tuple[FileStamp, ...]
    label: FileStamp | None
    group: str | None = None
    """Cases of one group (a patient) are never split between training and test."""
    columns: dict[str, str] = {}
    """Whatever else a manifest says of the case, such as its site."""


class Finding(Record):
    """Something wrong with a case. An error leaves the case out; a warning does not; a note says what was believed."""

    case: str
    severity: Severity
    rule: str
    message: str


class Dataset(Artefact):
    """What was matched in a dataset folder; header-only, nothing decoded."""

    name: str
    root: RecordedPath
    layout: Layout
    channel_names: tuple[str, ...]
    labels: Labels | None
    """Declared labels; None when they are found in the files."""
    resample_channels: bool = False
    """Channels on other grids are brought onto the first one's; else they are an error."""
    cases: tuple[Case, ...]
    findings: tuple[Finding, ...] = ()
    """What was wrong already at matching: missing pairs, duplicate ids."""
    patients_from: str = added_later("")
    """Name of the table that names patients; empty where none does."""
    given: tuple[Given, ...] = added_later(())
    """What was given and how much of it is used: entries of folders, rows of tables."""
    notes: tuple[str, ...] = added_later(())
    """What is worth to know of the dataset as a whole."""

    @property
    def passed_over(self) -> list[str]:
        """Lines that say what was given and is not used; none where everything is."""
        return [line for given in self.given for line in given.lines()]

    def only(self, cases: Collection[str]) -> "Dataset":
        """Return the dataset with some of its cases, and what was found of these."""
        return self.model_copy(
            update={
                "cases": tuple(c for c in self.cases if c.id in cases),
                "findings": tuple(f for f in self.findings if f.case in cases),
            }
        )
