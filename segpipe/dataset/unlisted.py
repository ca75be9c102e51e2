"""What lies beside the files that a list names: it may be left out on purpose, so it is counted and no case is lost."""

from collections.abc import Collection
from pathlib import Path

from segpipe.core.given import Given, PassedOver
from segpipe.core.system_names import real_path
from segpipe.dataset.entries import dangles, entries_of

_MOST_FOLDERS = 4
"""With more folders than these, all are one count: a folder for each patient."""


def unlisted(folder: Path, images: Collection[Path], labels: Collection[Path], why: str) -> tuple[Given, ...]:
    """Count the images of the folders that a list names images of, and those that it leaves out.

    Images, links that lead nowhere, and files of formats that are not read are counted; sub-folders are not, since they may be listed.

    Parameters
    ----------
    folder : Path
        The dataset's; folders outside it are not looked at.
    images, labels : collection of Path
        Files that the list names.
    why : str
        The reason for an image that is not listed.
    """
    known = {real_path(path) for path in (*images, *labels)}
    inside = {real_path(parent) for parent in {path.parent for path in images} if parent.is_dir()}
    folders = sorted(place for place in inside if place.is_relative_to(real_path(folder)))
    counts = [(f"{place.name}/", *_count(place, known, why)) for place in folders]
    if len(counts) > _MOST_FOLDERS:
        left = tuple(item for _, _, passed_over in counts for item in passed_over)
        counts = [(f"{len(counts)} folders", sum(n for _, n, _ in counts), left)]
    return tuple(Given(kind=f"images of {name}", n_given=n, passed_over=left) for name, n, left in counts)


def _count(folder: Path, known: Collection[Path], why: str) -> tuple[int, tuple[PassedOver, ...]]:
    entries = entries_of(folder)
    left = [
        PassedOver(what=p.name, why="link to what is not there" if dangles(p) else why)
        for p in entries.images
        if real_path(p) not in known
    ]
    # What may be a case elsewhere is no case here: the list says what the cases are.
    unread = [
        PassedOver(what=item.what, why=item.why)
        for item in entries.given.passed_over
        if item.a_case and "/ (" not in item.what
    ]
    return len(entries.images) + len(unread), (*left, *unread)
