"""A fold whose cases were lost in preparing is refused, with their reasons."""

from types import SimpleNamespace

import pytest

from segpipe.dataset.splits import make_splits
from segpipe.errors import TrainingError
from segpipe.preprocessing.schema import PreprocessedIndex
from segpipe.training.settings import FoldSettings
from segpipe.workflows.fold import FoldWork, require_cases, train_fold

SPLITS = make_splits({name: name for name in "abcd"}, "x", n_folds=2)


def work(lost):
    index = PreprocessedIndex(
        configuration="3d_fullres",
        plan_digest="",
        cases=tuple(case for case in "abcd" if case not in lost),
        failed={case: f"{case} needs 900 GB" for case in lost},
    )
    project = SimpleNamespace(splits=SPLITS)
    return FoldWork(project, None, "3d_fullres", FoldSettings(fold=0), index)


@pytest.mark.parametrize(("does", "cases"), [("holds out", "validation"), ("trains on", "train")])
@pytest.mark.parametrize("refuse", [require_cases, train_fold])
def test_lost_cases_are_named_with_their_reasons(does, cases, refuse):
    lost = getattr(SPLITS.folds[0], cases)
    with pytest.raises(TrainingError, match=f"fold 0: every case that it {does} was lost") as error:
        refuse(work(lost))
    assert all(f"{case}: {case} needs 900 GB" in str(error.value) for case in lost)


def test_a_fold_that_keeps_a_case_of_each_kind_is_trained():
    fold = SPLITS.folds[0]
    require_cases(work((fold.train[0], fold.validation[0])))
