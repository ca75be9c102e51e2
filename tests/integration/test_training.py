import json
import os
import signal
import threading

import pytest
import torch

import segpipe
from segpipe.core.progress import Watch
from segpipe.core.workspace import Workspace
from segpipe.errors import TrainingError, TrainingInterrupted
from segpipe.training.schema import TrainingRecord


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
    logs = [
        Workspace(w).fold("3d_fullres", "tiny", 0).log.read_text(encoding="utf-8").splitlines() for w in (work, other)
    ]
    assert [json.loads(line)["train_loss"] for line in logs[0]] == [json.loads(line)["train_loss"] for line in logs[1]]


def test_the_log_and_the_record_say_what_happened(planned):
    folder, work = planned
    record = segpipe.train(folder, work=work, epochs=2, jobs=1, device="cpu", seed=3).record
    fold = Workspace(work).fold("3d_fullres", "tiny", 0)
    lines = [json.loads(line) for line in fold.log.read_text(encoding="utf-8").splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2]
    assert {"train_loss", "validation_dice", "learning_rate", "data_wait_share", "elapsed_s"} <= set(lines[0])
    assert lines[1]["learning_rate"] < lines[0]["learning_rate"]
    assert TrainingRecord.read(fold.record) == record
    assert record.seed == 3
    assert set(record.validation_dice) == {"cube_1", "cube_2"}
    assert Workspace(work).model("3d_fullres", "tiny").is_file()


def test_a_finished_fold_is_kept_on_resume_and_never_overwritten(trained):
    folder, work = trained
    record = TrainingRecord.read(Workspace(work).fold("3d_fullres", "tiny", 0).record)
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
        log.read_text(encoding="utf-8")
        + log.read_text(encoding="utf-8").replace('"iteration": 6', '"iteration": 12')
        + '{"epoch": 3, "iter',
        encoding="utf-8",
    )
    segpipe.train(folder, work=work, epochs=3, jobs=1, device="cpu", resume=True)
    assert [json.loads(line)["epoch"] for line in log.read_text(encoding="utf-8").splitlines()] == [1, 2, 3]


def test_resuming_with_an_end_that_is_past_finishes(planned):
    folder, work = planned
    with pytest.raises(TrainingInterrupted):
        segpipe.train(folder, work=work, epochs=3, jobs=1, device="cpu", watch=StopAt(signal.SIGTERM, 8))
    record = segpipe.train(folder, work=work, epochs=1, jobs=1, device="cpu", resume=True).record
    assert record.iterations == 8


def test_a_model_that_was_not_packed_is_packed_on_resume(trained):
    folder, work = trained
    model = Workspace(work).model("3d_fullres", "tiny")
    model.unlink()
    segpipe.train(folder, work=work, epochs=1, jobs=1, device="cpu", resume=True)
    assert model.is_file()


def flip(path, at):
    content = bytearray(path.read_bytes())
    content[at] ^= 64
    path.write_bytes(content)


def test_damaged_weights_are_refused_and_made_again_from_the_checkpoint(trained):
    folder, work = trained
    fold = Workspace(work).fold("3d_fullres", "tiny", 0)
    sound, packed = fold.weights.read_bytes(), Workspace(work).model("3d_fullres", "tiny").read_bytes()
    flip(fold.weights, len(sound) // 2)
    with pytest.raises(TrainingError, match=r"weights\.safetensors: the file is damaged, or another one.*delete it"):
        segpipe.train(folder, work=work, epochs=1, jobs=1, device="cpu", resume=True)
    assert Workspace(work).model("3d_fullres", "tiny").read_bytes() == packed
    # As the message says.
    fold.weights.unlink()
    fold.record.unlink()
    segpipe.train(folder, work=work, epochs=1, jobs=1, device="cpu", resume=True)
    assert (fold.weights.read_bytes(), Workspace(work).model("3d_fullres", "tiny").read_bytes()) == (sound, packed)


def test_weights_that_are_gone_are_named(trained):
    folder, work = trained
    Workspace(work).fold("3d_fullres", "tiny", 0).weights.unlink()
    with pytest.raises(TrainingError, match=r"weights\.safetensors: is gone"):
        segpipe.train(folder, work=work, epochs=1, jobs=1, device="cpu", resume=True)


def test_a_damaged_checkpoint_is_refused_by_name(planned):
    folder, work = planned
    with pytest.raises(TrainingInterrupted):
        segpipe.train(folder, work=work, epochs=3, jobs=1, device="cpu", watch=StopAt(signal.SIGTERM, 8))
    checkpoint = Workspace(work).fold("3d_fullres", "tiny", 0).checkpoint
    for at in (2000, checkpoint.stat().st_size // 2, checkpoint.stat().st_size - 3000):
        flip(checkpoint, at)
        with pytest.raises(TrainingError, match=r"checkpoint\.pt: cannot be read"):
            segpipe.train(folder, work=work, epochs=3, jobs=1, device="cpu", resume=True)
        flip(checkpoint, at)
    assert segpipe.train(folder, work=work, epochs=3, jobs=1, device="cpu", resume=True).record.epochs == 3


def test_minutes_end_training(planned):
    folder, work = planned
    record = segpipe.train(folder, work=work, minutes=0.03, jobs=1, device="cpu").record
    assert record.elapsed_s >= 1.8
    assert record.epochs >= 1


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
