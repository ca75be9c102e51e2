"""What the studies of a cross-validation come to: one result, a table, the methods in words, a report, and the model of all cases."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from segpipe.core.artefact import write_atomically
from segpipe.crossvalidation.folder import CrossvalFolder
from segpipe.crossvalidation.pool import Pooled, pool, summarise, write_table
from segpipe.crossvalidation.schema import FINAL, CrossvalDesign, CrossvalResult, CrossvalSplits
from segpipe.dataset.schema import Dataset
from segpipe.execution.graph import Standing
from segpipe.reporting.crossval_figures import draw_calibration, draw_scores
from segpipe.reporting.crossval_page import write_page
from segpipe.reporting.methods import Trainings, methods
from segpipe.reporting.run import draw_extremes
from segpipe.training.schema import TrainingRecord


def bring_together(
    folder: CrossvalFolder, design: CrossvalDesign, splits: CrossvalSplits, found: Mapping[str, Standing]
) -> tuple[CrossvalResult | None, Path | None]:
    """Write what can be told by now; returns the result, None where no test case was scored, and the model, None where it is not made."""
    model = _final_model(folder, found)
    pooled = pool(folder, design, splits, found)
    if not pooled.cases:
        return None, model
    result = summarise(folder, design, splits, pooled, found)
    result.write(folder.result)
    write_table(folder.table, splits, pooled)
    _report(folder, design, splits, result, pooled, found, model)
    return result, model


def _final_model(folder: CrossvalFolder, found: Mapping[str, Standing]) -> Path | None:
    """The model of all cases, where it lies in the first place to look for it."""
    standing = found.get(f"{FINAL}/model")
    if standing is None or standing.state != "done":
        return None
    write_atomically(folder.model, folder.study(FINAL).model.read_bytes())
    return folder.model


def _report(
    folder: CrossvalFolder,
    design: CrossvalDesign,
    splits: CrossvalSplits,
    result: CrossvalResult,
    pooled: Pooled,
    found: Mapping[str, Standing],
    model: Path | None,
) -> None:
    records = [
        TrainingRecord.read(path)
        for study in splits.studies
        for path in sorted(folder.study(study.name).workspace.root.glob("models/*/*/fold_*/record.json"))
    ]
    text = methods(design, splits, result, Trainings.of(records))
    write_atomically(folder.methods, text.encode())
    figures = [
        (
            "Dice of every test case; colours are outer folds, lines medians.",
            draw_scores(pooled.scores, result.labels.names, folder.root / "scores.png"),
        )
    ]
    if result.calibration:
        drawn = draw_calibration(result.calibration, folder.root / "calibration.png")
        figures.append(
            (
                "Reliability of the labels' probabilities around the structures; on the broken line they are frequencies.",
                drawn,
            )
        )
    # Of several repeats the first: a case has one score there, and one segmentation.
    repeats = {fold.name: fold.repeat for fold in splits.outer}
    first = {name: scores for name, scores in pooled.scores.items() if repeats.get(name, 0) == 0}
    where = {case.case: pooled.folders[name] for name, scores in first.items() for case in scores}
    drawn_of = [case for scores in first.values() for case in scores]
    extremes = draw_extremes(drawn_of, Dataset.read(folder.workspace.dataset), result.labels, where, folder.root)
    figures += [("Lines: reference. Colour: prediction.", picture) for picture in extremes]
    command = None if model is None else f"segpipe predict IMAGES OUTPUT --model {model}"
    write_page(folder.page, design, splits, result, pooled, found, methods=text, figures=figures, command=command)
