"""The report of a cross-validation: one self-contained page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, select_autoescape

from segpipe.artefact import write_atomically
from segpipe.comparison.schema import METRICS
from segpipe.crossvalidation.pool import NAME_BETWEEN, Pooled
from segpipe.crossvalidation.schema import CrossvalDesign, CrossvalResult, CrossvalSplits
from segpipe.graph import Standing, counts
from segpipe.reporting.figures import as_data_url


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
    environment = Environment(
        loader=PackageLoader("segpipe.crossvalidation"),
        autoescape=select_autoescape(),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["score"] = _score
    environment.filters["joined"] = NAME_BETWEEN.join
    page = environment.get_template("report.html").render(
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
    write_atomically(path, page.encode())


def _score(value: Any, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
