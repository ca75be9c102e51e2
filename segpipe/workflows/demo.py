"""`segpipe demo`: write the demo dataset."""

from __future__ import annotations

from pathlib import Path

from segpipe.core.workspace import PathLike
from segpipe.errors import SegpipeError


def demo(folder: PathLike) -> Path:
    """Write the demo dataset of drawn organs into a folder; returns the folder.

    Parameters
    ----------
    folder : path
        Created when missing; must not hold another dataset.
    """
    from segpipe.dataset.phantoms import write_phantoms

    target = Path(folder)
    if target.exists() and any(target.iterdir()):
        raise SegpipeError(f"{target}: is not empty; give a new folder for the demo dataset")
    write_phantoms(target)
    return target
