import json
import os
import signal
import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import segpipe
from segpipe.core import seeds
from segpipe.core.progress import Watch
from segpipe.core.workspace import Workspace
from segpipe.dataset.splits import make_splits
from segpipe.errors import DatasetError, SegpipeError, TrainingError, TrainingInterrupted
from segpipe.planning.recipe import TrainingSettings
from segpipe.training.sampling import CaseExtent, Sampling, draw_patches, read_box
from segpipe.training.schedule import cosine_decay, learning_rate, make_schedule, poly_decay
from segpipe.training.schema import TrainingRecord
from tests.phantoms import write_small_dataset

RECIPE = """
name = "tiny"
description = "for tests"
[planner]
base_features = 4
max_batch = 2
budget_gb = 1.0
[training]
optimizer = "adamw"
learning_rate = 0.01
iterations_per_epoch = 6
validation_batches = 2
"""


@pytest.fixture
def planned(tmp_path):
    """A small dataset, planned."""
    folder = write_small_dataset(tmp_path / "dataset")
    (tmp_path / "tiny.toml").write_text(RECIPE)
    segpipe.plan(folder, work=tmp_path / "work", recipe=tmp_path / "tiny.toml", jobs=1)
    return folder, tmp_path / "work"


def weights(work):
    from safetensors.torch import load_file

    return load_file(Workspace(work).fold("3d_fullres", "tiny", 0).weights)


class StopAt(Watch):
    """Sends a signal to this process after some iterations."""

    def __init__(self, number, iterations):
        self.number, self.left = number, iterations

    def training(self, title):
        from contextlib import contextmanager

        @contextmanager
        def shown():
            def show(*_):
                self.left -= 1
                if self.left == 0:
                    os.kill(os.getpid(), self.number)

            yield show

        return shown()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_interrupted_and_resumed_is_the_uninterrupted_run(planned, tmp_path, number):
    folder, work = planned
    segpipe.train(folder, work=work, epochs=2, jobs=1, device="cpu", deterministic=True)
    whole = weights(work)

    other = tmp_path / "other"
    segpipe.plan(folder, work=other, recipe=tmp_path / "tiny.toml", jobs=1)
    with pytest.raises(TrainingInterrupted, match=f"stopped by {number.name} at iteration 8.*--resume") as stopped:
        segpipe.train(folder, work=other, epochs=2, jobs=1, device="cpu", deterministic=True, watch=StopAt(number, 8))
    assert stopped.value.exit_code == 128 + number
    assert not Workspace(other).fold("3d_fullres", "tiny", 0).record.exists()
    with pytest.raises(TrainingError, match="--resume"):
        segpipe.train(folder, work=other, epochs=2, jobs=1, device="cpu")
    record = segpipe.train(folder, work=other, epochs=2, jobs=1, device="cpu", deterministic=True, resume=True).record
    assert (record.iterations, record.epochs) == (12, 2)
    resumed = weights(other)
    assert all(torch.equal(whole[k], resumed[k]) for k in whole)
    logs = [Workspace(w).fold("3d_fullres", "tiny", 0).log.read_text().splitlines() for w in (work, other)]
    assert [json.loads(line)["train_loss"] for line in logs[0]] == [json.loads(line)["train_loss"] for line in logs[1]]


def test_the_log_and_the_record_say_what_happened(planned):
    folder, work = planned
    record = segpipe.train(folder, work=work, epochs=2, jobs=1, device="cpu", seed=3).record
    fold = Workspace(work).fold("3d_fullres", "tiny", 0)
    lines = [json.loads(line) for line in fold.log.read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2]
    assert {"train_loss", "validation_dice", "learning_rate", "data_wait_share", "elapsed_s"} <= set(lines[0])
    assert lines[1]["learning_rate"] < lines[0]["learning_rate"]
    assert TrainingRecord.read(fold.record) == record
    assert record.seed == 3
    assert set(record.validation_dice) == {"cube_1", "cube_2"}
    assert Workspace(work).model("3d_fullres", "tiny").is_file()


def test_a_finished_fold_is_kept_on_resume_and_never_overwritten(planned):
    folder, work = planned
    record = segpipe.train(folder, work=work, epochs=1, jobs=1, device="cpu").record
    assert segpipe.train(folder, work=work, epochs=1, jobs=1, device="cpu", resume=True).record == record
    with pytest.raises(TrainingError, match="trained before"):
        segpipe.train(folder, work=work, epochs=1, jobs=1, device="cpu")


def test_another_seed_cannot_continue(planned):
    folder, work = planned
    with pytest.raises(TrainingInterrupted):
        segpipe.train(folder, work=work, epochs=2, jobs=1, device="cpu", watch=StopAt(signal.SIGTERM, 2))
    with pytest.raises(TrainingError, match="seed 0, now it is 1"):
        segpipe.train(folder, work=work, epochs=2, jobs=1, device="cpu", seed=1, resume=True)


def test_the_log_has_each_epoch_once_after_a_crash(planned):
    """Killed after the last checkpoint: the epochs that the checkpoint does not hold are done and logged again."""
    folder, work = planned
    with pytest.raises(TrainingInterrupted):
        segpipe.train(folder, work=work, epochs=3, jobs=1, device="cpu", watch=StopAt(signal.SIGTERM, 8))
    log = Workspace(work).fold("3d_fullres", "tiny", 0).log
    log.write_text(
        log.read_text() + log.read_text().replace('"iteration": 6', '"iteration": 12') + '{"epoch": 3, "iter'
    )
    segpipe.train(folder, work=work, epochs=3, jobs=1, device="cpu", resume=True)
    assert [json.loads(line)["epoch"] for line in log.read_text().splitlines()] == [1, 2, 3]


def test_resuming_with_an_end_that_is_past_finishes(planned):
    folder, work = planned
    with pytest.raises(TrainingInterrupted):
        segpipe.train(folder, work=work, epochs=3, jobs=1, device="cpu", watch=StopAt(signal.SIGTERM, 8))
    record = segpipe.train(folder, work=work, epochs=1, jobs=1, device="cpu", resume=True).record
    assert record.iterations == 8


def test_a_model_that_was_not_packed_is_packed_on_resume(planned):
    folder, work = planned
    segpipe.train(folder, work=work, epochs=1, jobs=1, device="cpu")
    model = Workspace(work).model("3d_fullres", "tiny")
    model.unlink()
    segpipe.train(folder, work=work, epochs=1, jobs=1, device="cpu", resume=True)
    assert model.is_file()


def test_a_wrong_fold_is_refused_before_anything_is_prepared(planned):
    folder, work = planned
    with pytest.raises(DatasetError, match="--fold 9: expected 0 to 4, or all"):
        segpipe.train(folder, work=work, fold=9, epochs=1, jobs=1, device="cpu")
    assert not (work / "preprocessed").exists()


def test_minutes_end_training(planned):
    folder, work = planned
    record = segpipe.train(folder, work=work, minutes=0.03, jobs=1, device="cpu").record
    assert record.elapsed_s >= 1.8
    assert record.epochs >= 1


def test_epochs_and_minutes_exclude_each_other(planned):
    folder, work = planned
    with pytest.raises(SegpipeError, match="two ends"):
        segpipe.train(folder, work=work, epochs=1, minutes=1)


def test_training_in_a_thread_listens_to_no_signal(planned):
    folder, work = planned
    done = []
    thread = threading.Thread(
        target=lambda: done.append(segpipe.train(folder, work=work, epochs=1, jobs=1, device="cpu"))
    )
    thread.start()
    thread.join()
    assert done[0].record.epochs == 1


def test_fold_all_trains_on_every_case_and_2d_trains(planned):
    folder, work = planned
    record = segpipe.train(folder, work=work, fold="all", configuration="2d", epochs=1, jobs=1, device="cpu").record
    assert (record.fold, record.configuration, record.mirror_axes) == ("all", "2d", (0, 1))


def test_a_non_finite_loss_names_the_cases(planned, monkeypatch):
    folder, work = planned
    import segpipe.training.loop as loop

    monkeypatch.setattr(loop.Loss, "over_heads", lambda *args: args[1][0].sum() * float("nan"))
    with pytest.raises(TrainingError, match=r"iteration 0: the loss is nan.*case_\d from voxel \(0, 0, 0\)"):
        segpipe.train(folder, work=work, epochs=1, jobs=1, device="cpu")


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
