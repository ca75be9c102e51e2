"""Whose workspace it is: one dataset's, which may move, and no other's."""

from __future__ import annotations

from collections.abc import Collection
from os.path import commonpath
from pathlib import Path
from typing import TYPE_CHECKING

from segpipe.core.regular import lies
from segpipe.core.system_names import real_path
from segpipe.core.workspace import Workspace
from segpipe.errors import ArtefactError, SegpipeError

if TYPE_CHECKING:
    from segpipe.dataset.schema import Case, Dataset, FileStamp
    from segpipe.dataset.store import StoredCase

_MOST_SHOWN = 3
"""Cases that a refusal names."""


def require_same_dataset(source: Path, workspace: Workspace) -> str | None:
    """Make sure that a workspace holds nothing of another dataset; nothing is written.

    A dataset is the same where it lies at the same place, whatever changed in it. At another place it is the same where it has the case
    ids of the one that the workspace knows, no more and no fewer, and each case has the same files: of the same sizes and times, or of
    the same content. Where the former files are gone and their content was not kept, the same sizes are enough.
    Where `segpipe check` alone was there before, the cases that it read are what the workspace knows.

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

    if lies(workspace.dataset):
        known = Dataset.read(workspace.dataset)
        if known.root == real_path(source):
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
    before, cases = {case.id: case for case in known.cases}, {case.id: case for case in now.cases}
    if not before.keys() & cases.keys():
        return "no case id is in both"
    for where, ids in ((known.root, before.keys() - cases.keys()), (now.root, cases.keys() - before.keys())):
        if ids:
            return f"only {where} has {_named(ids)}; at another place its cases have to be the same"
    for case in now.cases:
        if not _same_files(_stamps(before[case.id]), _stamps(case), _stored(workspace, case.id)):
            return f"case {case.id!r} has other files"
    return None


def _require_own_cases(now: Dataset, workspace: Workspace) -> None:
    """Raise where `segpipe check` kept cases of another dataset in a workspace that has no dataset.json yet."""
    records = sorted((workspace.decoded or workspace.root / "cases").glob("*/record.json"))
    stored = {record.parent.name: found for record in records if (found := _stored(workspace, record.parent.name))}
    cases = {case.id: case for case in now.cases}
    places = {stamp.path for case in stored.values() for stamp in case.stamps}
    files = {stamp.path for case in now.cases for stamp in _stamps(case)}
    if places & files or any(now.root.is_dir() and place.is_relative_to(now.root) for place in places):
        return
    for case, kept in stored.items():
        if case not in cases:
            why = f"it has no case {case!r}"
        elif not _same_files(kept.stamps, _stamps(cases[case]), kept):
            why = f"case {case!r} has other files"
        else:
            continue
        raise _refusal(workspace, Path(commonpath([place.parent for place in places])), now.root, why)


def _named(ids: Collection[str]) -> str:
    """Return how many cases, with the first of them."""
    shown = ", ".join(sorted(ids)[:_MOST_SHOWN])
    return f"{len(ids)} case(s): {shown}{', ...' * (len(ids) > _MOST_SHOWN)}"


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
