"""`segpipe report`: write the report page of a workspace."""

from __future__ import annotations

from pathlib import Path

from segpipe.core.progress import SILENT, Watch
from segpipe.core.workspace import Workspace
from segpipe.core.writable import require_writable
from segpipe.dataset.fingerprint.schema import Fingerprint
from segpipe.dataset.schema import Dataset
from segpipe.errors import ArtefactError
from segpipe.evaluation.run import evaluate
from segpipe.evaluation.schema import Evaluation
from segpipe.evaluation.score import SCORED_AS_OF
from segpipe.io.formats import output_ending
from segpipe.reporting.run import report as stage
from segpipe.reporting.run import scored_places
from segpipe.workflows.options import ReportOptions
from segpipe.workflows.page import Page


def report(options: ReportOptions, watch: Watch = SILENT) -> Path:
    """Write the report of a workspace about all folds that were scored, or about one fold; returns the page.

    Scores of two-dimensional images that an earlier version made, by another rule, are made again from the stored predictions.
    """
    workspace = Workspace(options.work)
    if not workspace.root.is_dir():
        raise ArtefactError(
            f"{workspace.root}: no such workspace; give the folder that `segpipe run` was given as --work"
        )
    require_writable(workspace.report.parent)
    places = scored_places(workspace, options.fold)
    for place in places:
        _score_again(workspace, place, watch)
    return stage(workspace, places)


def _score_again(workspace: Workspace, place: Path, watch: Watch) -> None:
    """Score a fold's predictions again, where its scores are of two-dimensional images and of an earlier version."""
    file = workspace.evaluation / place.with_suffix(".json")
    stored = Evaluation.read(file)
    if stored.scored_as_of == SCORED_AS_OF:
        return
    measured = Fingerprint.read(workspace.fingerprint)
    flat = {case.case for case in measured.cases if 1 in case.shape}
    scored = {case.case for case in stored.cases}
    if not flat & scored:
        return
    folder = workspace.predictions / place
    pairs = [
        (case.id, folder / f"{case.id}{output_ending(case.images[0].path)}", case.label.path)
        for case in Dataset.read(workspace.dataset).cases
        if case.id in scored and case.label is not None
    ]
    gone = [path for pair in pairs for path in pair[1:] if not path.exists()]
    if gone or len(pairs) < len(scored):
        lost = f"{gone[0]} is not there any more" if gone else "not all of its cases are in the dataset any more"
        watch.note(
            f"{place}: its scores were made by an earlier version, whose NSD and HD95 of two-dimensional images are wrong, and cannot be "
            f"made again ({lost}); run `segpipe run` with --resume"
        )
        return
    with watch.counting(f"scoring {place} again: contours of two-dimensional images", len(pairs)) as step:
        again = evaluate(
            pairs, measured.labels,
            missing=stored.failed, tolerance_mm=stored.tolerance_mm, nsd_unit=stored.nsd_unit, workers=1, on_case=step,
        )  # fmt: skip
    again.write(file)


def page(written: Path, _: ReportOptions) -> Page:
    """Show where the page is."""
    return Page({"report": str(written)}, [str(written)])
