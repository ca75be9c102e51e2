"""The test cases of a study, looked at when everything is chosen."""

from __future__ import annotations

import shutil

from segpipe.core.labels import Labels
from segpipe.crossvalidation.folder import WINNER
from segpipe.dataset.fingerprint.schema import Fingerprint
from segpipe.evaluation.reliability import Reliability
from segpipe.models.file import ModelFile
from segpipe.workflows.crossval.predict import predict_and_score
from segpipe.workflows.crossval.work import Work
from segpipe.workflows.scoring import Models


def test(work: Work) -> str:
    """Predict the test cases with the winner, score them, and count how far its probabilities are frequencies."""
    plan = ModelFile.read(work.folder.model).plan
    folder = work.folder.test(WINNER)
    references = {case.id: case.label.path for case in work.cases(work.study.test) if case.label is not None}
    counting = Reliability(plan, references, folder / "calibration")
    evaluation = predict_and_score(
        work,
        Models((work.folder.model,), tta=work.design.tta, postprocess=True),
        work.study.test,
        folder,
        labels=_task_labels(work),
        onlooker=counting.sink_of,
    )
    return evaluation.digest()


def test_candidate(work: Work) -> str:
    """Predict and score the test cases with one candidate, to compare candidates on cases that none was chosen on."""
    assert work.task.candidate is not None
    model = work.model_of(work.candidate(work.task.candidate))
    folder = work.folder.test(str(work.task.candidate))
    folds = tuple(str(k) for k in range(len(work.study.inner)))
    evaluation = predict_and_score(
        work, Models((model,), folds, work.design.tta), work.study.test, folder, labels=_task_labels(work)
    )
    return evaluation.digest()


def clear_test(work: Work) -> None:
    """Take away what another model said of the test cases."""
    name = WINNER if work.task.candidate is None else str(work.task.candidate)
    shutil.rmtree(work.folder.test(name), ignore_errors=True)


def _task_labels(work: Work) -> Labels:
    """Labels of the whole dataset: one that no training case has is missed, not passed over."""
    return Fingerprint.read(work.main.workspace.fingerprint).labels
