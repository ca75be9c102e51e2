"""`segpipe evaluate`: score segmentations against references."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from segpipe.core.progress import SILENT, Watch
from segpipe.core.workspace import PathLike

if TYPE_CHECKING:
    from segpipe.evaluation.schema import Evaluation


def evaluate(
    predictions: PathLike,
    references: PathLike,
    *,
    labels: PathLike | None = None,
    output: PathLike | None = None,
    tolerance_mm: float = 1.0,
    jobs: int | None = None,
    watch: Watch = SILENT,
) -> Evaluation:
    """Score segmentations against references of the same name.

    Parameters
    ----------
    predictions, references : path
        Two folders, or two files.
    labels : path, optional
        A dataset.json whose names, regions and ignored value are scored; every value but 0 unless given.
    output : path, optional
        JSON file to write.
    tolerance_mm : float
        Of the normalised surface Dice.
    jobs : int, optional
        Most worker processes.
    watch : Watch
        Told of progress.
    """
    from segpipe.dataset.match import read_labels_file
    from segpipe.evaluation.run import evaluate as stage
    from segpipe.evaluation.run import match_pairs

    declared = None if labels is None else read_labels_file(Path(labels))
    pairs, missing = match_pairs(Path(predictions), Path(references))
    with watch.counting("scoring", len(pairs)) as done:
        result = stage(
            pairs,
            declared,
            missing=missing,
            tolerance_mm=tolerance_mm,
            jobs_limit=jobs,
            on_case=done,
        )
    if output is not None:
        result.write(Path(output))
    return result
