import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import segpipe
from segpipe.core import seeds
from segpipe.core.workspace import Workspace
from segpipe.dataset.schema import Dataset
from segpipe.dataset.splits import make_splits
from segpipe.errors import DatasetError, SegpipeError, TrainingError, UsageError
from segpipe.planning.recipe import TrainingSettings
from segpipe.planning.schema import Plan
from segpipe.training.sampling import CaseExtent, Sampling, draw_patches, read_box
from segpipe.training.schedule import cosine_decay, learning_rate, make_schedule, poly_decay
from segpipe.workflows.checked import require_offered_fold
from segpipe.workflows.project import Project
from tests.phantoms import write_small_dataset


def test_a_wrong_fold_is_refused_before_anything_is_prepared(planned):
    folder, work = planned
    with pytest.raises(UsageError, match="--fold 9: expected 0 to 4, or all"):
        segpipe.train(folder, work=work, fold=9, epochs=1, jobs=1, device="cpu")
    assert not (work / "preprocessed").exists()


def test_a_fold_that_the_splits_lack_is_refused_before_anything_is_measured(planned, monkeypatch):
    folder, work = planned
    matched = Dataset.read(work / "dataset.json")
    make_splits({case.id: "one" if case.id[-1] < "2" else "two" for case in matched.cases}, "x").write(
        work / "splits.json"
    )
    monkeypatch.setattr(Project, "measure", None)
    for command in (segpipe.train, segpipe.run):
        with pytest.raises(SegpipeError, match="--fold 4: expected 0 to 1, or all") as error:
            command(folder, work=work, fold=4, jobs=1, device="cpu")
        assert error.value.exit_code == 2


def test_a_fold_that_the_splits_lack_is_refused_before_it_is_planned(tmp_path, monkeypatch):
    folder = write_small_dataset(tmp_path / "data", n_cases=2, shape=(8, 8, 8))
    monkeypatch.setattr("segpipe.workflows.run.plan_to_run", None)
    with pytest.raises(SegpipeError, match="--fold 4: expected 0 to 1, or all") as error:
        segpipe.run(folder, work=tmp_path / "work", fold=4, jobs=1, device="cpu")
    assert error.value.exit_code == 2


def test_a_fold_that_new_cases_may_bring_is_not_refused_by_the_splits_of_before(planned):
    folder, work = planned
    known = Dataset.read(work / "dataset.json")
    known.model_copy(update={"cases": known.cases[:2]}).write(work / "dataset.json")
    make_splits({case.id: case.id for case in known.cases[:2]}, "x").write(work / "splits.json")
    require_offered_fold(4, Workspace(work), folder)


@pytest.mark.parametrize("network", [None, "resenc_unet"])
def test_a_fold_that_was_trained_is_refused_before_anything_is_measured(planned, monkeypatch, network):
    folder, work = planned
    plan = Plan.read(work / "plan.json")
    name = plan.recipe if network is None else f"{plan.recipe}+{network}"
    fold = Workspace(work).fold(plan.default_configuration(), name, 0)
    fold.root.mkdir(parents=True)
    fold.weights.touch()
    monkeypatch.setattr(Project, "measure", None)
    recipe = str(work.parent / "tiny.toml")
    with pytest.raises(TrainingError, match="trained before"):
        segpipe.run(folder, work=work, recipe=recipe, network=network, jobs=1, device="cpu")
    with pytest.raises(TrainingError, match="trained before"):
        segpipe.train(folder, work=work, network=network, jobs=1, device="cpu")
    with pytest.raises(TrainingError, match="has no checkpoint"):
        segpipe.train(folder, work=work, network=network, extend=True, epochs=2, jobs=1, device="cpu")


def test_epochs_and_minutes_exclude_each_other(planned):
    folder, work = planned
    with pytest.raises(SegpipeError, match="two ends"):
        segpipe.train(folder, work=work, epochs=1, minutes=1)


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(*[st.integers(1, 30)] * 3),
    st.tuples(*[st.integers(1, 12)] * 3),
    st.integers(1, 6),
    st.floats(0, 1),
    st.integers(0, 99),
)
def test_patches_lie_in_the_image_where_they_fit(shape, patch, batch, share, seed):
    rng = np.random.default_rng(seed)
    voxel = [int(rng.integers(n)) for n in shape]
    case = CaseExtent(shape, np.array([[1, *voxel]], dtype=np.int32))
    drawn = draw_patches([case, case], Sampling(patch, batch, share), rng)
    assert len(drawn) == batch
    for p in drawn:
        for start, size, n in zip(p.start, patch, shape, strict=True):
            assert 0 <= start <= n - size if n > size else start <= 0 and start + size >= n
    n_forced = batch - round(batch * (1 - share))
    for p in drawn[batch - n_forced :]:
        assert all(s <= v < s + size for s, v, size in zip(p.start, voxel, patch, strict=True))


def test_forced_patches_visit_classes_alike():
    rows = [[1, 0, 0, i % 100] for i in range(1000)] + [[2, 50, 0, 0]]
    case = CaseExtent((60, 10, 100), np.array(rows, dtype=np.int32))
    rng = seeds.stream(0, "test")
    starts = [draw_patches([case], Sampling((4, 4, 4), 1, 1.0), rng)[0].start[0] for _ in range(400)]
    assert 140 < sum(s > 20 for s in starts) < 260


@settings(max_examples=60)
@given(st.tuples(*[st.integers(1, 8)] * 3), st.tuples(*[st.integers(-6, 9)] * 3), st.tuples(*[st.integers(1, 9)] * 3))
def test_reading_a_box_is_padding_and_cutting(shape, start, size):
    array = np.arange(1, np.prod(shape) + 1).reshape(1, *shape)
    padded = np.pad(array, [(0, 0)] + [(20, 20)] * 3, constant_values=-7)
    expected = padded[(slice(None), *(slice(s + 20, s + 20 + n) for s, n in zip(start, size, strict=True)))]
    np.testing.assert_array_equal(read_box(array, start, size, -7).numpy(), expected)


def test_schedules():
    by_case = make_schedule(TrainingSettings(patches_per_case=4, epochs=3), 10, 2, epochs=None, minutes=None)
    assert (by_case.epochs, by_case.iterations_per_epoch) == (3, 20)
    capped = make_schedule(TrainingSettings(patches_per_case=4), 1000, 2, epochs=5, minutes=None)
    assert (capped.epochs, capped.iterations_per_epoch) == (5, 250)
    assert capped.progress(625, 0) == 0.5
    timed = make_schedule(TrainingSettings(), 10, 2, epochs=None, minutes=2)
    assert timed.progress(99999, 60) == 0.5
    assert (poly_decay(0), poly_decay(1)) == (1, 0)
    assert poly_decay(0.5) == pytest.approx(0.5**0.9)
    assert (cosine_decay(0), cosine_decay(0.5), cosine_decay(1)) == pytest.approx((1, 0.5, 0))
    warm = TrainingSettings(learning_rate=0.1, warmup_iterations=4, schedule="cosine")
    assert [learning_rate(warm, i, 0) for i in (0, 1, 3, 9)] == pytest.approx([0.025, 0.05, 0.1, 0.1])
    assert timed.remaining_s(5, 60, 99.0) == 60
    assert by_case.remaining_s(10, 99, 2.0) == 100


def test_splits_are_nnunets_without_groups():
    from sklearn.model_selection import KFold

    cases = [f"c{i:02d}" for i in range(13)]
    splits = make_splits({c: c for c in cases}, "digest")
    expected = KFold(n_splits=5, shuffle=True, random_state=12345).split(cases)
    assert [f.validation for f in splits.folds] == [tuple(cases[i] for i in test) for _, test in expected]


@given(st.lists(st.integers(0, 6), min_size=1, max_size=30))
def test_a_patient_is_never_divided(patients):
    groups = {f"c{i}": f"p{p}" for i, p in enumerate(patients)}
    splits = make_splits(groups, "")
    assert splits.fold("all").train == tuple(sorted(groups))
    if len(set(patients)) < 2:
        with pytest.raises(DatasetError, match="at least 2"):
            splits.fold(0)
        return
    assert sorted(c for f in splits.folds for c in f.validation) == sorted(groups)
    for fold in splits.folds:
        assert {groups[c] for c in fold.train}.isdisjoint({groups[c] for c in fold.validation})
        assert fold.train
        assert sorted(fold.train + fold.validation) == sorted(groups)


def test_streams_depend_on_seed_and_name():
    draws = {seeds.stream(*name).integers(2**60) for name in ((0, "a"), (0, "b"), (1, "a"), (0, "a", 1))}
    assert len(draws) == 4
    assert seeds.stream(0, "a").integers(2**60) in draws
