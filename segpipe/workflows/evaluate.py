"""`segpipe evaluate`: score segmentations against references."""

from __future__ import annotations

from segpipe.core.progress import SILENT, Watch
from segpipe.dataset.match import read_labels_file
from segpipe.evaluation.run import evaluate as stage
from segpipe.evaluation.run import given_of, match_pairs
from segpipe.evaluation.schema import Evaluation
from segpipe.workflows.options import EvaluateOptions
from segpipe.workflows.page import FAILED_CASES, Page, plain, scores


def evaluate(options: EvaluateOptions, watch: Watch = SILENT) -> Evaluation:
    """Score segmentations against references of the same name."""
    declared = None if options.labels is None else read_labels_file(options.labels)
    pairs, missing = match_pairs(options.predictions, options.references)
    with watch.counting("scoring", len(pairs)) as done:
        result = stage(
            pairs, declared, missing=missing, given=given_of(options.predictions, options.references),
            tolerance_mm=options.tolerance_mm, workers=options.jobs, on_case=done,
        )  # fmt: skip
    if options.output is not None:
        result.write(options.output)
    return result


def page(result: Evaluation, _: EvaluateOptions) -> Page:
    """Show scores per label."""
    passed_over = [line for given in result.given for line in given.lines()]
    parts = [*scores(result), *(["\n".join(passed_over)] if passed_over else [])]
    lost = FAILED_CASES if any(given.loses_a_case for given in result.given) else 0
    return Page(plain(result), parts, result.failed, "Cases not scored", exit_code=lost)
