"""The report of a cross-validation: one self-contained page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from segpipe.crossvalidation.pool import Pooled
from segpipe.crossvalidation.schema import CrossvalDesign, CrossvalResult, CrossvalSplits
from segpipe.evaluation.comparison import METRICS
from segpipe.execution.graph import Standing, counts
from segpipe.reporting.figures import as_data_url
from segpipe.reporting.page import fill_page


def write_page(
    path: Path,
    design: CrossvalDesign,
    splits: CrossvalSplits,
    result: CrossvalResult,
    pooled: Pooled,
    found: Mapping[str, Standing],
    *,
    methods: str,
    figures: Sequence[tuple[str, Path]],
    command: str | None,
) -> None:
    """Write the page.

    Parameters
    ----------
    path : Path
    design, splits, result, pooled
        What was asked for, how cases were divided, what came out.
    found : mapping of job to standing
    methods : str
        The methods paragraph.
    figures : sequence of (what it shows, file)
    command : str, optional
        How to predict with the model of all cases.
    """
    fill_page(
        path,
        "crossval.html",
        design=design,
        splits=splits,
        result=result,
        pooled=pooled,
        metrics=METRICS,
        counts=counts(found.values()),
        methods=[part for part in methods.split("\n") if part],
        figures=[(what, as_data_url(file)) for what, file in figures],
        command=command,
    )
