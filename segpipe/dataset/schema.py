"""The dataset artefact: which files belong to which case."""

from pathlib import Path
from typing import Literal

from segpipe.artefact import Artefact, Record

Layout = Literal["nnunet", "decathlon", "pairs", "manifest"]


class FileStamp(Record):
    """A file with what changes when its content does."""

    path: Path
    size_bytes: int
    modified_ns: int

    @classmethod
    def of(cls, path: Path) -> "FileStamp":
        """Stamp an existing file."""
        status = path.stat()
        return cls(path=path, size_bytes=status.st_size, modified_ns=status.st_mtime_ns)


class Case(Record):
    """One subject's images (one file a channel, or one file with all channels) and its label file."""

    id: str
    images: tuple[FileStamp, ...]
    label: FileStamp | None
    group: str | None = None
    """Cases of one group (a patient) are never split between training and test."""


class Finding(Record):
    """Something wrong with a case. An error leaves the case out; a warning does not; a note says what was believed."""

    case: str
    severity: Literal["error", "warning", "note"]
    rule: str
    message: str


class Dataset(Artefact):
    """What was matched in a dataset folder; header-only, nothing decoded."""

    name: str
    root: Path
    layout: Layout
    channel_names: tuple[str, ...]
    labels: dict[str, int] | None
    """Declared label names and values, background included; None when they are found in the files."""
    cases: tuple[Case, ...]
    findings: tuple[Finding, ...] = ()
    """What was wrong already at matching: missing pairs, duplicate ids."""
