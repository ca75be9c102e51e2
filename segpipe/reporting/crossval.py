"""What the studies of a cross-validation come to: one result, a table, the methods in words, a report, and the model of all cases."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from segpipe.core.regular import regular
from segpipe.core.whole import write_atomically
from segpipe.crossvalidation.folder import CrossvalFolder
from segpipe.crossvalidation.pool import Pooled, pool, summarise, write_table
from segpipe.crossvalidation.schema import FINAL, CrossvalDesign, CrossvalResult, CrossvalSplits
from segpipe.dataset.schema import Dataset
from segpipe.evaluation.comparison import METRICS
from segpipe.execution.graph import Standing, counts
from segpipe.reporting.crossval_figures import draw_calibration, draw_scores
from segpipe.reporting.figures import as_data_url
from segpipe.reporting.methods import Trainings, methods
from segpipe.reporting.page import fill_page
from segpipe.reporting.run import draw_extremes
from segpipe.training.schema import TrainingRecord


def bring_together(
    folder: CrossvalFolder, design: CrossvalDesign, splits: CrossvalSplits, found: Mapping[str, Standing]
) -> tuple[CrossvalResult | None, Path | None]:
    """Write what is known by now; returns the result, None where no test case was scored, and the model, None where it is not made."""
    model = _final_model(folder, found)
    pooled = pool(folder, design, splits, found)
    if not pooled.cases:
        return None, model
    result = summarise(folder, design, splits, pooled, found)
    result.write(folder.result)
    write_table(folder.table, splits, pooled)
    text = methods(design, splits, result, Trainings.of(_records(folder, splits)))
    write_atomically(folder.methods, text.encode())
    fill_page(
        folder.page,
        "crossval.html",
        design=design,
        splits=splits,
        result=result,
        pooled=pooled,
        metrics=METRICS,
        counts=counts(found.values()),
        methods=[part for part in text.split("\n") if part],
        figures=_figures(folder, splits, result, pooled),
        command=None if model is None else f"segpipe predict IMAGES OUTPUT --model {model}",
    )
    return result, model


def _final_model(folder: CrossvalFolder, found: Mapping[str, Standing]) -> Path | None:
    """The model of all cases, where it lies in the first place to look for it."""
    standing = found.get(f"{FINAL}/model")
    if standing is None or standing.state != "done":
        return None
    write_atomically(folder.model, regular(folder.study(FINAL).model).read_bytes())
    return folder.model


def _figures(
    folder: CrossvalFolder, splits: CrossvalSplits, result: CrossvalResult, pooled: Pooled
) -> list[tuple[str, str]]:
    """Draw the figures beside the page; returns what each shows, and its picture as a URL."""
    drawn = draw_scores(pooled.scores, result.labels.names, folder.root / "scores.png")
    figures = [("Dice of every test case; colours are outer folds, lines medians.", drawn)]
    if result.calibration:
        about = (
            "Reliability of the labels' probabilities around the structures; on the broken line they are frequencies."
        )
        figures.append((about, draw_calibration(result.calibration, folder.root / "calibration.png")))
    # Of several repeats the first: a case has one score there, and one segmentation.
    repeats = {fold.name: fold.repeat for fold in splits.outer}
    first = {name: scores for name, scores in pooled.scores.items() if repeats.get(name, 0) == 0}
    where = {case.case: pooled.folders[name] for name, scores in first.items() for case in scores}
    drawn_of = [case for scores in first.values() for case in scores]
    extremes = draw_extremes(drawn_of, Dataset.read(folder.workspace.dataset), result.labels, where, folder.root)
    figures += [("Lines: reference. Colour: prediction.", picture) for picture in extremes]
    return [(what, as_data_url(file)) for what, file in figures]


def _records(folder: CrossvalFolder, splits: CrossvalSplits) -> list[TrainingRecord]:
    """Return the records of every finished training."""
    roots = [folder.study(study.name).workspace.root for study in splits.studies]
    return [TrainingRecord.read(path) for root in roots for path in sorted(root.glob("models/*/*/fold_*/record.json"))]
