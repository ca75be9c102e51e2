"""A candidate trained on an inner fold, or on all cases of its study."""

from __future__ import annotations

import shutil

from segpipe.core.artefact import json_digest
from segpipe.core.regular import lies
from segpipe.crossvalidation.schema import CandidatePlan
from segpipe.dataset.fingerprint.schema import Fingerprint
from segpipe.dataset.splits import Splits
from segpipe.errors import CrossvalError
from segpipe.execution.locks import locked
from segpipe.planning.run import read_plan
from segpipe.preprocessing.schema import PreprocessedIndex
from segpipe.training.schema import TrainingRecord
from segpipe.training.settings import FoldSettings
from segpipe.workflows.arrays import prepare_arrays
from segpipe.workflows.crossval.work import Work
from segpipe.workflows.fold import FoldWork, train_fold
from segpipe.workflows.held_out import prepare_first_stage, score_held_out
from segpipe.workflows.options import Scoring


def train(work: Work) -> str:
    """Train a candidate on an inner fold, predict what the fold held out, and score it."""
    assert work.task.candidate is not None
    assert work.task.fold is not None
    record, fold = trained(work, work.candidate(work.task.candidate), work.task.fold)
    # What is scored now are still the files that were divided.
    work.cases(work.study.inner[work.task.fold].validation)
    held_out = score_held_out(fold, Scoring(tta=work.design.tta, tolerance_mm=work.design.tolerance_mm))
    if not held_out.evaluation.cases:
        raise CrossvalError(
            f"no held-out case could be scored: {next(iter(held_out.failed.values()), 'none is there')}"
        )
    return json_digest([record.weights_sha256, held_out.evaluation.digest()])


def trained(work: Work, chosen: CandidatePlan, fold: int | str) -> tuple[TrainingRecord, FoldWork]:
    """Train a fold, or take it up where it was left."""
    _require_own_folds(work)
    plan, configuration, project = work.plan_of(chosen), chosen.candidate.configuration, work.project
    arrays = plan.arrays_of(configuration)
    path = work.workspace.prepared_index(arrays)
    if not lies(path):
        # They are taken away when the study is done, and this is done again.
        with locked(work.workspace.arrays, wait=True, note=work.watch.note):
            # By the plan that all candidates share, as before: another one's patches are stored otherwise.
            if not lies(path):
                prepare_arrays(project, read_plan(work.workspace, project.measured), arrays)
    settings = FoldSettings(
        fold=fold, epochs=chosen.epochs, seed=work.design.seed, deterministic=work.design.deterministic, resume=True
    )
    fold_work = FoldWork(project, plan, configuration, settings, PreprocessedIndex.read(path))
    if plan.configuration(configuration).previous_stage is not None:
        with locked(work.workspace.first_stage(configuration, plan.recipe), wait=True):
            fold_work = fold_work.on(prepare_first_stage(fold_work))
    return train_fold(fold_work), fold_work


def _require_own_folds(work: Work) -> None:
    """Raise unless the workspace still holds the inner folds of the study: where it held none, a training would make some of its own."""
    held = Splits.read(work.workspace.splits)
    if held.folds != work.study.inner or held.dataset_digest != Fingerprint.read(work.workspace.fingerprint).digest():
        raise CrossvalError(
            f"{work.workspace.splits}: holds other folds than {work.study.name} has; delete {work.folder.root} to begin it anew"
        )


def clear_fold(work: Work) -> None:
    """Take away what was trained from something else."""
    chosen = work.candidate(work.task.candidate or 0)
    place = work.workspace.place(chosen.candidate.configuration, chosen.variant, work.task.fold or 0)
    for folder in (work.workspace.root / "models", work.workspace.predictions):
        shutil.rmtree(folder / place, ignore_errors=True)
    (work.workspace.evaluation / place.with_suffix(".json")).unlink(missing_ok=True)
