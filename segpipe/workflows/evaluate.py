"""`segpipe evaluate`: score segmentations against references."""

from __future__ import annotations

from segpipe.core.painting import painting_problems
from segpipe.core.progress import SILENT, Watch
from segpipe.core.writable import require_writable_file, unwritable
from segpipe.dataset.match import read_labels_file
from segpipe.errors import UnsavedError
from segpipe.evaluation.run import evaluate as stage
from segpipe.evaluation.run import match_pairs
from segpipe.evaluation.schema import Evaluation
from segpipe.workflows.options import EvaluateOptions
from segpipe.workflows.page import FAILED_CASES, Page, plain, scores


def evaluate(options: EvaluateOptions, watch: Watch = SILENT) -> Evaluation:
    """Score segmentations against references of the same name.

    Raises
    ------
    UnsavedError
        If the scores cannot be written; it holds them.
    """
    if options.output is not None:
        require_writable_file(options.output, "--output", Evaluation.lies)
    declared = None if options.labels is None else read_labels_file(options.labels)
    for problem in [] if declared is None or declared.by_set else painting_problems(declared.targets):
        watch.note(f"{options.labels}: painted in this order, {problem}")
    matched = match_pairs(options.predictions, options.references)
    with watch.counting("scoring", len(matched.pairs)) as done:
        result = stage(
            matched.pairs, declared, missing=matched.twice | matched.missing, given=matched.given,
            tolerance_mm=options.tolerance_mm, nsd_unit=options.nsd, workers=options.jobs, on_case=done,
        )  # fmt: skip
    if options.output is not None:
        try:
            result.write(options.output)
        except OSError as error:
            raise UnsavedError(unwritable(options.output, error, "--output"), result) from error
    return result


def page(result: Evaluation, _: EvaluateOptions) -> Page:
    """Show scores per label, and what was given and is not in them."""
    lost = any(given.loses_a_case for given in result.given)
    exit_code = FAILED_CASES if lost else 0
    return Page(plain(result), scores(result), result.failed, "Cases not scored", exit_code)
