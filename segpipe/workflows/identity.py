"""Whose workspace it is: one dataset's, which may move, and no other's."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from segpipe.core.workspace import Workspace
from segpipe.errors import ArtefactError, SegpipeError

if TYPE_CHECKING:
    from segpipe.dataset.schema import Case, Dataset, FileStamp
    from segpipe.dataset.store import StoredCase


def require_same_dataset(source: Path, workspace: Workspace) -> str | None:
    """Make sure that a workspace holds nothing of another dataset; nothing is written.

    A dataset is the same where it lies at the same place, whatever changed in it. At another place it is the same where it shares cases
    with the one that the workspace knows, and each shared case has the same files: of the same sizes and times, or of the same content.
    Where the former files are gone and their content was not kept, the same sizes are enough.

    Returns
    -------
    str or None
        A sentence where the dataset lies at another place than before.

    Raises
    ------
    SegpipeError
        If the workspace is another dataset's; names both places.
    """
    from segpipe.dataset.match import match_dataset
    from segpipe.dataset.schema import Dataset

    if workspace.dataset.is_file():
        known = Dataset.read(workspace.dataset)
        if known.root == source.resolve():
            return None
        now = match_dataset(source)
        why = _why_another(known, now, workspace)
        if why is None:
            return f"{now.root}: the dataset was at {known.root} before; its cases are the same"
        raise _refusal(workspace, known.root, now.root, why)
    if (workspace.decoded or workspace.root / "cases").is_dir():
        _require_own_cases(match_dataset(source), workspace)
    return None


def _why_another(known: Dataset, now: Dataset, workspace: Workspace) -> str | None:
    """Return why a dataset is not the one that a workspace knows; None where it is."""
    before = {case.id: case for case in known.cases}
    shared = [case for case in now.cases if case.id in before]
    if not shared:
        return "no case id is in both"
    for case in shared:
        if not _same_files(_stamps(before[case.id]), _stamps(case), _stored(workspace, case.id)):
            return f"case {case.id!r} has other files"
    return None


def _require_own_cases(now: Dataset, workspace: Workspace) -> None:
    """Raise where `segpipe check` kept cases of another dataset in a workspace that has no dataset.json yet."""
    for case in now.cases:
        stored, stamps = _stored(workspace, case.id), _stamps(case)
        if stored is None:
            continue
        places = [stamp.path for stamp in stored.stamps]
        folder = now.root if now.root.is_dir() else now.root.parent
        own = any(place.is_relative_to(folder) for place in places) or {s.path for s in stamps} & set(places)
        if not own and not _same_files(stored.stamps, stamps, stored):
            raise _refusal(workspace, places[0].parent, now.root, f"case {case.id!r} has other files")
        return


def _refusal(workspace: Workspace, before: Path, now: Path, why: str) -> SegpipeError:
    return SegpipeError(
        f"workspace {workspace.root}: holds results of the dataset {before}; {now} is another one ({why}); give it a workspace of its "
        "own with --work"
    )


def _stamps(case: Case) -> tuple[FileStamp, ...]:
    return (*case.images, *((case.label,) if case.label is not None else ()))


def _stored(workspace: Workspace, case: str) -> StoredCase | None:
    from segpipe.dataset.store import StoredCase

    try:
        return StoredCase.read(workspace.case(case).record)
    except ArtefactError:
        return None


def _same_files(before: tuple[FileStamp, ...], now: tuple[FileStamp, ...], stored: StoredCase | None) -> bool:
    """Whether files at two places are the same: by sizes and times, or by content; by sizes where the former files are gone unread."""
    from segpipe.io.formats import content_of

    if [s.size_bytes for s in before] != [s.size_bytes for s in now]:
        return False
    if [s.modified_ns for s in before] == [s.modified_ns for s in now]:
        return True
    contents = tuple(content_of((s.path,)) for s in now)
    if stored is not None:
        return stored.contents == contents
    there = [s.path for s in before if s.path.exists()]
    return not there or tuple(content_of((path,)) for path in there) == contents
