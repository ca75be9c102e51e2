"""The cases that a fold held out: predicted whole, scored, and drawn beside the fold's record."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from segpipe.core.system_names import below
from segpipe.dataset.schema import Case
from segpipe.evaluation.schema import Evaluation
from segpipe.preprocessing.previous import FoundBefore, prepare_previous
from segpipe.preprocessing.run import peak_bytes
from segpipe.preprocessing.schema import PreprocessedIndex
from segpipe.reporting.run import draw_examples
from segpipe.workflows.fold import FoldWork
from segpipe.workflows.options import Scoring
from segpipe.workflows.scoring import Models, output_of, predict_and_score, predict_cases


@dataclass(frozen=True)
class HeldOut:
    """Scores of a fold's held-out cases, and where everything is."""

    evaluation: Evaluation
    predictions: Path
    evaluation_file: Path
    pictures: tuple[Path, ...] = ()
    failed: dict[str, str] = field(default_factory=dict)
    """Cases of the dataset that were lost on the way, with the stage and the reason."""


def held_out_cases(work: FoldWork) -> list[Case]:
    """Return the cases that a fold holds out."""
    ids = set(work.project.splits.fold(work.fold).validation)
    return [c for c in work.project.matched.cases if c.id in ids]


def lost_in_preparing(work: FoldWork) -> dict[str, str]:
    """Return the cases that preprocessing lost, with the reasons: they are not read again."""
    return {case: f"preprocessing: {reason}" for case, reason in work.prepared.failed.items()}


def own_fold(work: FoldWork, *, tta: bool) -> Models:
    """Return the trained fold alone; the model file may hold others that saw its held-out cases."""
    return Models((work.model,), (str(work.fold),), tta)


def score_held_out(work: FoldWork, scoring: Scoring) -> HeldOut:
    """Predict and score the cases that a trained fold held out, and draw some of them beside its record."""
    project, workspace = work.project, work.project.workspace
    folder = workspace.predictions / work.place
    _, evaluation = predict_and_score(
        project, held_out_cases(work), own_fold(work, tta=scoring.tta), folder,
        labels=work.plan.labels, tolerance_mm=scoring.tolerance_mm, resume=work.settings.resume,
        title=f"predicting the held-out cases of fold {work.fold}", lost=lost_in_preparing(work),
    )  # fmt: skip
    evaluation_file = workspace.evaluation / work.place.with_suffix(".json")
    evaluation.write(evaluation_file)
    failed = {c: f"left out: {r}" for c, r in project.measured.left_out.items()}
    failed |= {c: f"prediction or scoring: {r}" for c, r in evaluation.failed.items()}
    failed |= lost_in_preparing(work)
    pictures = draw_examples(workspace, work.place, project.matched)
    return HeldOut(evaluation, folder, evaluation_file, tuple(pictures), failed)


def prepare_first_stage(work: FoldWork) -> PreprocessedIndex:
    """Bring what a cascade's first stage found onto the grid of its second: of each case, from the fold that held it out.

    Raises
    ------
    TrainingError
        If not every fold of the first stage is trained.
    """
    project, plan, index = work.project, work.plan, work.prepared
    workspace, watch = project.workspace, project.watch
    chosen = plan.configuration(work.configuration)
    if chosen.previous_stage is None:
        return index
    first, found, failed = chosen.previous_stage, [], dict(index.failed)
    for fold in range(len(project.splits.folds)):
        before = replace(work, configuration=first, settings=replace(work.settings, fold=fold))
        # Apart from the predictions that were scored, which may have been made without mirroring.
        folder = below(workspace.predictions, work.configuration, plan.recipe, "first_stage", f"fold_{fold}")
        predicted = predict_cases(
            project, held_out_cases(before), own_fold(before, tta=True), folder,
            title=f"predicting the held-out cases of fold {fold}", lost=index.failed,
        )  # fmt: skip
        failed |= {c: f"{first}: {reason}" for c, reason in predicted.failed.items() if c not in index.failed}
        found += [
            FoundBefore(case, output_of(case, folder), row.model)
            for case, row in zip(predicted.cases, predicted.rows, strict=True)
            if row.status == "done" and case.id in index.cases
        ]
    with watch.counting(f"bringing the segmentations of {first} to {work.configuration}", len(found)) as step:
        failed |= prepare_previous(
            found,
            plan,
            chosen,
            workspace.first_stage(work.configuration, plan.recipe),
            workers=project.workers,
            bytes_each=peak_bytes(project.measured, plan, chosen),
            on_case=step,
        )
    for case, reason in failed.items():
        if case not in index.failed:
            watch.note(f"{case}: {reason}")
    kept = tuple(f.id for f in found if f.id not in failed)
    return index.model_copy(update={"configuration": work.configuration, "cases": kept, "failed": failed})
