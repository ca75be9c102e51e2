"""What a job of a study may look at, and what it makes of what is missing; without training."""

import os
from types import SimpleNamespace

import pytest

import segpipe
from segpipe.core.progress import Watch
from segpipe.core.workspace import Workspace
from segpipe.crossvalidation.folder import CrossvalFolder
from segpipe.errors import CrossvalError
from segpipe.workflows.crossval import prepare
from segpipe.workflows.crossval.work import Work
from tests.phantoms import write_small_dataset


def test_a_file_that_changed_since_the_cases_were_divided_is_not_scored(tmp_path):
    dataset = write_small_dataset(tmp_path / "dataset", n_cases=3, shape=(16, 16, 16))
    segpipe.plan(dataset, work=tmp_path / "work", recipe="cpu", jobs=1)
    main = CrossvalFolder(Workspace(tmp_path / "work"))
    work = Work(task=None, inputs=None, design=None, study=None, main=main, folder=None, watch=None)
    case = work.cases(["case_1"])[0]
    assert case.id == "case_1"
    state = case.label.path.stat()
    os.utime(case.label.path, ns=(state.st_atime_ns, state.st_mtime_ns + 1_000_000_000))
    assert [c.id for c in work.cases(["case_0", "case_2"])] == ["case_0", "case_2"]
    with pytest.raises(CrossvalError, match=r"case 'case_1': .*case_1.* has changed since the cases were divided"):
        work.cases(["case_0", "case_1"])
    # Its content has not: the next command sees that, and goes on.
    segpipe.plan(dataset, work=tmp_path / "work", recipe="cpu", jobs=1)
    assert len(work.cases(["case_0", "case_1"])) == 2
    case.images[0].path.unlink()
    with pytest.raises(CrossvalError, match="or is gone"):
        work.cases(["case_1"])


def test_minutes_are_the_same_epochs_in_every_study_whatever_runs_beside(tmp_path, monkeypatch):
    """A network's speed is timed by the first study alone; twice the work of a step is half the epochs."""
    dataset = write_small_dataset(tmp_path / "dataset", n_cases=3, shape=(16, 16, 16))
    plan = segpipe.plan(dataset, work=tmp_path / "work", recipe="cpu", jobs=1)
    main = CrossvalFolder(Workspace(tmp_path / "work"))
    timed = []

    def seconds_of(*_, **__):
        timed.append(0.002 * 10 ** len(timed))
        return timed[-1]

    monkeypatch.setattr("segpipe.workflows.crossval.prepare.seconds_of", seconds_of)

    def epochs(study, plan=plan, name="cpu", minutes=1.0):
        fold = SimpleNamespace(train=("case_0", "case_1"))
        work = SimpleNamespace(
            design=SimpleNamespace(minutes=minutes),
            main=main,
            study=SimpleNamespace(name=study, inner=(fold,)),
            watch=Watch(),
            project=SimpleNamespace(runtime=None),
        )
        return prepare._epochs_within(work, plan, "3d_fullres", name)

    first = epochs("fold_0")
    assert first[1] == pytest.approx(0.002)
    assert epochs("fold_1") == first
    assert timed == [0.002], "not timed again"
    assert epochs("fold_1", minutes=2.0)[0] == pytest.approx(2 * first[0], abs=1)
    chosen = plan.configuration("3d_fullres")
    larger = chosen.model_copy(update={"batch_size": 2 * chosen.batch_size})
    double = plan.model_copy(update={"configurations": plan.configurations | {"3d_fullres": larger}})
    assert epochs("fold_2", double)[1] == pytest.approx(2 * first[1])
    assert epochs("fold_0", name="cpu+u2netp")[1] == pytest.approx(0.02), "another network is timed itself"
