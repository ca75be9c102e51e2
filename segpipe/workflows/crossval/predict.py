"""Cases predicted by models of a study, and scored."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from segpipe.workflows.crossval.work import Work, output_of

if TYPE_CHECKING:
    from segpipe.core.labels import Labels
    from segpipe.evaluation.schema import Evaluation
    from segpipe.inference.run import Onlooker


def predict_and_score(
    work: Work,
    models: tuple[Path, ...],
    ids: tuple[str, ...],
    folder: Path,
    *,
    folds: tuple[str, ...] = (),
    postprocess: bool = False,
    labels: Labels | None = None,
    onlooker: Onlooker | None = None,
) -> Evaluation:
    """Predict cases into a folder, and score them there."""
    from segpipe.evaluation.run import evaluate
    from segpipe.inference.engines.choose import network_cache
    from segpipe.inference.inputs import InputCase
    from segpipe.inference.predictor import Options, Predictor
    from segpipe.inference.run import predict

    options = Options(folds=folds, tta=work.design.tta, postprocess=postprocess, cache=network_cache())
    predictor = Predictor.load(models, work.runtime(), options)
    cases = work.cases(ids)
    inputs = [InputCase(c.id, tuple(i.path for i in c.images), output_of(c, folder)) for c in cases]
    rows = predict(inputs, predictor, folder / "predictions.jsonl", resume=True, onlooker=onlooker)
    failed = {row.case: row.reason or "" for row in rows if row.status == "failed"}
    pairs = [
        (c.id, i.output, c.label.path) for c, i in zip(cases, inputs, strict=True) if c.label and c.id not in failed
    ]
    evaluation = evaluate(
        pairs, labels or predictor.plan.labels, missing=failed, tolerance_mm=work.design.tolerance_mm, jobs_limit=1
    )
    evaluation.write(folder / "evaluation.json")
    return evaluation
