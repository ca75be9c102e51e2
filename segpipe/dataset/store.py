"""Decoded cases, kept in the workspace so that each is read once, however many stages and configurations use it.

A case is read again only when its files have changed: by size and time, and where these differ by sha256 (a copied or touched file
has other times and the same content). What is kept is the box around the non-zero voxels, in the image's own number type.
The folder of a case may be deleted at any time; the files are then read again.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segpipe.core.artefact import ArraysRecord, json_digest
from segpipe.core.geometry import Grid, Shape, Spacing, bounding_box, triple
from segpipe.core.labels import smallest_dtype
from segpipe.core.regular import lies, read_text
from segpipe.core.volume import Volume
from segpipe.core.whole import write_atomically
from segpipe.core.workspace import CaseFiles
from segpipe.dataset.check import UNREADABLE, Expectations, check_case, structure_mask
from segpipe.dataset.room import require_room_to_read
from segpipe.dataset.schema import Case, FileStamp, Finding
from segpipe.errors import ArtefactError, CaseError, UnreadableFileError
from segpipe.io.arrays import read_array, write_array
from segpipe.io.formats import content_of
from segpipe.version import CASES_AS_OF, READ_AS_OF

logger = logging.getLogger(__name__)

_MARK = "read_as_of"
"""File in the folder of the cases: by which version's rules all of them were read."""


class StoredCase(ArraysRecord):
    """What reading a case gave."""

    stamps: tuple[FileStamp, ...]
    """Stamps of image and label files, in the order of the case."""
    contents: tuple[str, ...]
    """sha256 of each, of all files of a folder."""
    reading: str
    """Digest of all that shaped the reading."""
    findings: tuple[Finding, ...]
    shape: Shape | None = None
    """Shape of the whole image, (z, y, x) in canonical orientation; None where an error was found."""
    start: Shape = (0, 0, 0)
    """First voxel of the box that is kept."""
    spacing_mm: Spacing = (1.0, 1.0, 1.0)
    origin_mm: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """World position of the box's first voxel."""
    direction: tuple[tuple[float, float, float], ...] = ()
    read_as_of: str = ""
    """The version that last changed how files are read, when this case was; "" of 0.1.0.dev6 and older."""
    changed_as_of: str = ""
    """The same, where an earlier version had read other voxels from these files; else ""."""

    @property
    def usable(self) -> bool:
        """Whether there are arrays."""
        return self.shape is not None

    def content_digest(self) -> str:
        """Digest of what was read and how, without the files' times: what is made of the arrays stays valid while it holds."""
        return json_digest([self.contents, self.reading, *([self.changed_as_of] if self.changed_as_of else [])])


@dataclass(frozen=True)
class CaseArrays:
    """The kept box of a usable case."""

    image: Volume
    """(C, Z, Y, X), canonical orientation."""
    labels: NDArray[np.unsignedinteger]
    """(Z, Y, X) stored values."""


@dataclass(frozen=True)
class Reading:
    """A case with its record; the arrays are decoded, or opened from the store when they are asked for."""

    record: StoredCase
    case: Case
    expected: Expectations
    files: CaseFiles
    decoded: CaseArrays | None = None

    def arrays(self) -> CaseArrays:
        """Return the arrays of a usable case; where the store was damaged, from the case's own files.

        Raises
        ------
        CaseError
            If these can no longer be read either.
        """
        if self.decoded is not None:
            return self.decoded
        try:
            return self.stored()
        except (ArtefactError, ValueError) as error:
            logger.warning("case %s is read again from its own files: %s", self.case.id, error)
            self.files.record.unlink(missing_ok=True)
        again = read_case(self.case, self.expected, self.files)
        if again.decoded is None:
            raise CaseError("; ".join(f"{f.rule}: {f.message}" for f in again.record.findings))
        return again.decoded

    def stored(self) -> CaseArrays:
        """Return the arrays of the store.

        Raises
        ------
        ArtefactError, ValueError
            If they are damaged.
        """
        labels, image = (
            read_array(file, self.record.sha256_of(file)) for file in (self.files.labels, self.files.image)
        )
        grid = Grid(triple(labels.shape), self.record.spacing_mm, self.record.origin_mm, self.record.direction)
        return CaseArrays(Volume(image, grid), labels)


def read_case(case: Case, expected: Expectations, files: CaseFiles) -> Reading:
    """Return a case from the store, or read its files and store it."""
    stamps = (*case.images, *((case.label,) if case.label else ()))
    reading = json_digest(
        [CASES_AS_OF, expected.model_dump(mode="json"), case.id, len(case.images), case.label is not None]
    )
    known = _known(files)
    if known is not None and (known.reading != reading or _worth_another_try(known)):
        known = None
    if known is not None and known.read_as_of == READ_AS_OF:
        if known.stamps == stamps:
            return Reading(known, case, expected, files)
        if known.contents == _contents(stamps)[0]:
            record = known.model_copy(update={"stamps": stamps})
            record.write(files.record)
            return Reading(record, case, expected, files)
    files.record.unlink(missing_ok=True)
    files.root.mkdir(parents=True, exist_ok=True)
    require_room_to_read([stamp.path for stamp in case.images])
    checked = check_case(case, expected)
    findings, arrays, start = checked.findings, None, (0, 0, 0)
    if checked.image is not None and checked.labels is not None:
        arrays, start, lost = _kept_box(checked.image, checked.labels, expected)
        if lost:
            message = f"{lost} labelled voxel(s) lie where every channel is 0, outside the image; they are left out"
            findings = (*findings, Finding(case=case.id, severity="warning", rule="labels outside", message=message))
    contents, unread = _contents(stamps)
    if unread and not any(f.rule == UNREADABLE for f in findings):
        # It went, or was closed, after it was read.
        findings, arrays = (*findings, Finding(case=case.id, severity="error", rule=UNREADABLE, message=unread)), None
    record = StoredCase(stamps=stamps, contents=contents, reading=reading, findings=findings, read_as_of=READ_AS_OF)
    if arrays is not None and checked.image is not None:
        grid = arrays.image.grid
        place = {"spacing_mm": grid.spacing_mm, "origin_mm": grid.origin_mm, "direction": grid.direction}
        record = record.model_copy(update={"shape": checked.image.grid.shape, "start": start, **place})
    if known is not None and known.contents == record.contents:
        same = _same_voxels(Reading(known, case, expected, files), record, arrays)
        record = record.model_copy(update={"changed_as_of": known.changed_as_of if same else READ_AS_OF})
    if arrays is not None:
        written = ((files.image, arrays.image.array), (files.labels, arrays.labels))
        record = record.model_copy(update={"arrays": {file.name: write_array(file, a) for file, a in written}})
    record.write(files.record)
    return Reading(record, case, expected, files, arrays)


def _same_voxels(before: Reading, now: StoredCase, arrays: CaseArrays | None) -> bool:
    """Tell whether a case that an earlier version read has the same voxels at the same place."""
    places = [
        (case.shape, case.start, case.spacing_mm, case.origin_mm, case.direction) for case in (before.record, now)
    ]
    if places[0] != places[1] or (arrays is None) != (not before.record.usable):
        return False
    if arrays is None:
        return True
    try:
        stored = before.stored()
    except (ArtefactError, ValueError):
        return False
    return np.array_equal(stored.image.array, arrays.image.array) and np.array_equal(stored.labels, arrays.labels)


def all_read_now(cases: Path) -> bool:
    """Tell whether every case of a store was read as this version reads."""
    mark = cases / _MARK
    return lies(mark) and read_text(mark) == READ_AS_OF


def mark_all_read(cases: Path) -> None:
    """Note that every case of a store was read as this version reads."""
    write_atomically(cases / _MARK, READ_AS_OF.encode())


def _known(files: CaseFiles) -> StoredCase | None:
    if not lies(files.record):
        return None
    try:
        record = StoredCase.read(files.record)
    except ArtefactError:
        # From another version, or cut off: the files are there to be read again.
        return None
    return record if not record.usable or (lies(files.image) and lies(files.labels)) else None


def _worth_another_try(record: StoredCase) -> bool:
    """A file that could not be read may be readable now: a share was not mounted, a copy not finished."""
    return any(f.rule == UNREADABLE for f in record.findings)


def _kept_box(image: Volume, labels: NDArray[Any], expected: Expectations) -> tuple[CaseArrays, Shape, int]:
    """Box of the non-zero voxels, its first voxel, and the labelled voxels outside it."""
    box = bounding_box((image.array != 0).any(axis=0))
    kept = image.cropped(box)
    lost = 0
    if kept.grid.shape != image.grid.shape:
        structure = structure_mask(labels, expected.aside)
        lost = int(structure.sum() - structure[box].sum())
    stored = np.ascontiguousarray(labels[box])
    stored = stored.astype(smallest_dtype(int(stored.max())), copy=False)
    arrays = CaseArrays(Volume(np.ascontiguousarray(kept.array), kept.grid), stored)
    return arrays, triple([s.start for s in box]), lost


def _contents(stamps: tuple[FileStamp, ...]) -> tuple[tuple[str, ...], str]:
    """Return the sha256 of each file, and why one cannot be read; then there is none of it."""
    found, unread = [], ""
    for stamp in stamps:
        try:
            found.append(content_of((stamp.path,)))
        except UnreadableFileError as error:
            found.append("")
            unread = unread or str(error)
    return tuple(found), unread
