"""Cases predicted by models of a study, and scored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from segpipe.evaluation.schema import Evaluation
from segpipe.workflows import scoring
from segpipe.workflows.crossval.work import Work


def predict_and_score(work: Work, models: scoring.Models, ids: tuple[str, ...], folder: Path, **how: Any) -> Evaluation:
    """Predict cases into a folder, and score them there; ``how`` is as :func:`segpipe.workflows.scoring.predict_and_score` takes it."""
    _, evaluation = scoring.predict_and_score(
        work.project, work.cases(ids), models, folder, tolerance_mm=work.design.tolerance_mm, **how
    )
    evaluation.write(folder / "evaluation.json")
    return evaluation
