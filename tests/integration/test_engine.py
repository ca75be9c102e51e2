"""What the training engine promises: the same numbers however the work is shared out, and nothing lost whatever happens."""

import errno
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import segpipe
from segpipe.errors import ModelError, TrainingError
from segpipe.planning.schema import Plan
from segpipe.training import storage
from segpipe.training.fold import make_trainer
from segpipe.training.job import Listener as Silent
from segpipe.training.optimise import WeightAverage
from segpipe.training.run import train
from segpipe.training.schema import TrainingRecord
from segpipe.workflows.fold import status_line
from tests.helpers.engine import FLOAT32, RECIPE, Notes, farthest, job_of, weights
from tests.phantoms import write_small_dataset

# The same numbers, however the work is shared out


@pytest.mark.parametrize(("parts", "batch"), [(2, 4), (3, 4), (9, 4)])
def test_a_batch_in_parts_is_the_batch_as_a_whole(workplace, parts, batch):
    results = []
    for number in (1, parts):
        _, workspace = workplace(f"work_{number}", f"parts = {number}\n")
        record = train(job_of(workspace, deterministic=True), FLOAT32)
        results.append((record.train_loss, weights(workspace)))
    assert results[0][0] == pytest.approx(results[1][0], abs=1e-5)
    assert farthest(results[0][1], results[1][1]) < 1e-4


# Shown


def test_the_progress_of_one_epoch_ends_at_epoch_1(workplace):
    _, workspace = workplace()
    seen = []
    train(replace(job_of(workspace), epochs=1), FLOAT32, Silent(on_iteration=seen.append))
    assert seen[-1].progress == 1
    assert {status_line(status).split(",")[0] for status in seen} == {"epoch 1"}
    assert "patch Dice" in status_line(seen[-1])


# Never lost


@pytest.mark.parametrize("what", ["checkpoint.pt", "weights.safetensors"])
def test_a_full_disk_is_an_error_that_leaves_the_last_checkpoint_whole(workplace, monkeypatch, what):
    import segpipe.core.artefact

    folder, workspace = workplace(extra="checkpoint_minutes = 0.0001\n")
    fold = workspace.fold("3d_fullres", "tiny", 0)
    whole = segpipe.core.artefact.write_atomically
    written = []

    def full(path, content):
        if path.name == what and (len(written) == 2 or what.startswith("weights")):
            raise OSError(errno.ENOSPC, "No space left on device")
        if path.name == "checkpoint.pt":
            written.append(path)
        whole(path, content)

    for module in ("segpipe.training.checkpoint", "segpipe.training.fold"):
        monkeypatch.setattr(f"{module}.write_atomically", full)
    with pytest.raises(TrainingError, match=r"No space left on device.*continue with --resume"):
        segpipe.train(folder, work=workspace.root, epochs=2, jobs=1, device="cpu", deterministic=True)
    reached = torch.load(fold.checkpoint, weights_only=True)["progress"]["iteration"]
    assert reached < 8 if what == "checkpoint.pt" else reached == 8
    monkeypatch.undo()
    done = segpipe.train(folder, work=workspace.root, epochs=2, jobs=1, device="cpu", deterministic=True, resume=True)
    assert done.record.iterations == 8
    assert not list(fold.root.glob(".*.pt.*"))


def test_arrays_that_vanish_while_training_are_named_and_the_state_is_saved(workplace, monkeypatch):
    _, workspace = workplace()
    monkeypatch.setattr(storage, "_MEMORY_SHARE", 0.0)
    job = job_of(workspace)
    arrays = workspace.preprocessed("3d_fullres")

    def vanish(status):
        if status.progress >= 0.5:
            for file in arrays.glob("*/image.b2nd"):
                file.write_bytes(b"")

    with pytest.raises(TrainingError, match=r"case case_\d: its prepared arrays.*state of iteration \d+ is saved"):
        train(replace(job, epochs=50), FLOAT32, Silent(on_iteration=vanish))
    assert job.folder.checkpoint.is_file()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_fold_trains_on_a_gpu_with_its_data_there(workplace):
    from segpipe.execution.device import choose_runtime

    folder, workspace = workplace()
    notes = Notes()
    done = segpipe.train(folder, work=workspace.root, epochs=2, jobs=1, device="cuda", deterministic=True, watch=notes)
    assert any("on the device" in note for note in notes.notes)
    _, other = workplace("cpu")
    on_cpu = train(replace(job_of(other, deterministic=True), epochs=2), choose_runtime("cpu"))
    assert done.record.train_loss == pytest.approx(on_cpu.train_loss, abs=0.05)


def test_a_patch_with_values_that_are_not_finite_is_named(workplace, monkeypatch):
    _, workspace = workplace()
    trainer = make_trainer(job_of(workspace), FLOAT32, Silent())
    # TrainingCase is frozen; its array is not.
    trainer.training.cases[1].image[:] = float("nan")
    bad = trainer.training.cases[1].id
    trainer.training.augmentation = None
    with pytest.raises(
        TrainingError, match=rf"iteration \d: the loss is nan; these patches hold values.*{bad} from voxel"
    ) as error:
        trainer.run(resume=False)
    assert all(c.id not in str(error.value) for c in trainer.training.cases if c.id != bad)


# Optimisation


def test_the_average_follows_the_weights_and_is_what_is_kept(workplace):
    network = nn.Linear(1, 1, bias=False)
    average = WeightAverage(network, 0.5)
    start = network.weight.item()
    with torch.no_grad():
        network.weight += 1
    average.update(1000)
    assert float(average.average["weight"]) == pytest.approx(start + 0.5)
    with average.in_place():
        assert network.weight.item() == pytest.approx(start + 0.5)
    assert network.weight.item() == pytest.approx(start + 1)
    # What batch normalisation has seen belongs to the weights that saw it.
    norm = nn.BatchNorm1d(1)
    average = WeightAverage(norm, 0.5)
    norm.running_mean += 1
    average.update(1000)
    with average.in_place():
        assert norm.running_mean.item() == pytest.approx(0.5)
    assert norm.running_mean.item() == 1
    kept = []
    for extra in ("", "average_decay = 0.99\n"):
        _, workspace = workplace("avg" if extra else "plain", extra)
        train(job_of(workspace, deterministic=True), FLOAT32)
        kept.append((weights(workspace), torch.load(workspace.fold("3d_fullres", "tiny", 0).checkpoint)["network"]))
    assert farthest(*kept[0]) == 0
    assert farthest(kept[0][1], kept[1][1]) == 0
    assert farthest(*kept[1]) > 1e-4


def test_early_stopping_keeps_the_weights_of_the_best_epoch(workplace, monkeypatch):
    import segpipe.training.loop as loop

    _, workspace = workplace(extra="patience_epochs = 2\n")
    scores = iter([0.1, 0.9, 0.2, 0.1, 0.1, 0.1, 0.1, 0.1])
    seen = []

    def scored(network, *_, **__):
        seen.append({k: v.clone() for k, v in network.state_dict().items()})
        return [0.0, 2 * next(scores)], 0.0

    monkeypatch.setattr(loop, "patch_dice", scored)
    record = train(replace(job_of(workspace, deterministic=True), epochs=8), FLOAT32)
    assert record.stopped_early
    assert record.epochs == record.best_epoch + 2 < 8
    assert farthest(weights(workspace), seen[record.best_epoch - 1]) == 0
    with pytest.raises(TrainingError, match=r"holds out no case.*patience_epochs"):
        train(replace(job_of(workspace), fold="all"), FLOAT32)


# Sampling and augmentation


def test_left_and_right_labels_are_not_mirrored_into_each_other(workplace):
    _, workspace = workplace(names={"background": 0, "kidney_left": 1, "kidney_right": 2})
    plan = Plan.read(workspace.plan)
    across = plan.transpose_forward.index(2)
    assert across not in plan.mirror_axes
    assert len(plan.mirror_axes) == 2
    trainer = make_trainer(job_of(workspace), FLOAT32, Silent())
    assert trainer.training.augmentation.mirror_axes == plan.mirror_axes
    assert train(job_of(workspace), FLOAT32).mirror_axes == plan.mirror_axes
    _, other = workplace("z", '[training.augmentation]\nmirror = ["z"]\n')
    assert Plan.read(other.plan).mirror_axes == (Plan.read(other.plan).transpose_forward.index(0),)


def test_a_recipe_with_artefacts_and_deformation_trains(workplace):
    extra = "[training.augmentation]\nelastic = 0.5\nmotion = 0.3\nghosting = 0.3\nspike = 0.3\nbias_field = 0.3\nanisotropy = 0.3\n"
    _, workspace = workplace(extra=extra)
    assert train(job_of(workspace), FLOAT32).iterations == 4


def test_a_resumed_training_keeps_its_end_and_a_finished_one_its_weights(workplace):
    _, workspace = workplace()
    job = replace(job_of(workspace, deterministic=True), epochs=3)

    class Stopped(Exception):  # noqa: N818
        pass

    def stop(status):
        if status.epoch == 1:
            raise Stopped

    with pytest.raises(Stopped):
        train(replace(job, plan=with_checkpoints(job.plan)), FLOAT32, Silent(on_iteration=stop))
    again = train(replace(job, plan=with_checkpoints(job.plan), epochs=None, resume=True), FLOAT32)
    assert again.epochs == 3
    job.folder.checkpoint.unlink()
    with pytest.raises(TrainingError, match="trained before"):
        train(replace(job, plan=with_checkpoints(job.plan)), FLOAT32)
    with pytest.raises(TrainingError, match=r"seed 0 \(now 1\)"):
        train(replace(job, plan=with_checkpoints(job.plan), seed=1, resume=True), FLOAT32)


def with_checkpoints(plan):
    settings = plan.training.model_copy(update={"checkpoint_minutes": 1e-6})
    return plan.model_copy(update={"training": settings})


def test_the_log_holds_what_tensorboard_shows(workplace):
    pytest.importorskip("tensorboard")
    folder, workspace = workplace()
    segpipe.train(folder, work=workspace.root, epochs=2, jobs=1, device="cpu", tensorboard=True)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    fold = workspace.fold("3d_fullres", "tiny", 0)
    events = EventAccumulator(str(fold.root / "tensorboard"))
    events.Reload()
    lines = [json.loads(line) for line in fold.log.read_text(encoding="utf-8").splitlines()]
    assert [e.value for e in events.Scalars("train_loss")] == pytest.approx([line["train_loss"] for line in lines])
    assert [e.step for e in events.Scalars("learning_rate")] == [1, 2]


# Fine-tuning and the cascade


def test_fine_tuning_takes_over_the_plan_or_what_fits(workplace, tmp_path):
    folder, workspace = workplace()
    model = segpipe.train(folder, work=workspace.root, epochs=1, jobs=1, device="cpu").model
    other = write_small_dataset(tmp_path / "other", values=(5,), names={"background": 0, "ball": 5})
    notes = Notes()
    done = segpipe.train(other, work=tmp_path / "tuned", init_from=model, epochs=1, jobs=1, device="cpu", watch=notes)
    plan, theirs = Plan.read(tmp_path / "tuned" / "plan.json"), Plan.read(workspace.plan)
    mine = plan.configuration("3d_fullres")
    assert (mine, plan.labels.names) == (theirs.configuration("3d_fullres"), ("ball",))
    assert any("taking over that of" in note for note in notes.notes)
    assert any(note.strip().startswith("decoder.seg_layers.0.weight: 3x") for note in notes.notes)
    assert not any("encoder" in note for note in notes.notes)
    assert str(model) in done.record.begun_with
    # A plan that is there stays, and what fits is loaded.
    (tmp_path / "wide.toml").write_text(
        RECIPE.replace("base_features = 4", "base_features = 4\nmax_features_3d = 6"), encoding="utf-8"
    )
    segpipe.plan(other, work=tmp_path / "wide", recipe=tmp_path / "wide.toml", jobs=1)
    notes = Notes()
    segpipe.train(other, work=tmp_path / "wide", init_from=model, epochs=1, jobs=1, device="cpu", watch=notes)
    assert any(note.strip().startswith("encoder.stages.1") and "in the planned network" in note for note in notes.notes)
    assert not any(note.strip().startswith("encoder.stages.0") for note in notes.notes)
    (tmp_path / "other.toml").write_text(RECIPE.replace("base_features = 4", "base_features = 6"), encoding="utf-8")
    segpipe.plan(other, work=tmp_path / "none", recipe=tmp_path / "other.toml", jobs=1)
    with pytest.raises(ModelError, match=r"none of its convolutions fits.*a new --work"):
        segpipe.train(other, work=tmp_path / "none", init_from=model, epochs=1, jobs=1, device="cpu")
    (tmp_path / "none.segpipe").write_bytes(b"")
    with pytest.raises(ModelError, match=r"none\.segpipe"):
        segpipe.train(other, work=tmp_path / "wide2", init_from=tmp_path / "none.segpipe", epochs=1, jobs=1)


def test_fine_tuning_begins_with_the_weights_and_survives_an_interruption(workplace, monkeypatch):
    folder, workspace = workplace()
    model = segpipe.train(folder, work=workspace.root, epochs=1, jobs=1, device="cpu").model
    _, second = workplace("second")
    job = job_of(second, init_from=model)
    trainer = make_trainer(job, FLOAT32, Silent())
    assert farthest(weights(workspace), trainer.network.state_dict()) == 0
    train(job, FLOAT32)
    job.folder.record.unlink()
    again = train(replace(job, resume=True, initial=None), FLOAT32)
    assert str(model) in again.begun_with


def cascade(workspace):
    """Give a plan a low-resolution stage and a cascade, which it is too small for."""
    plan = Plan.read(workspace.plan)
    full = plan.configuration("3d_fullres")
    coarse = tuple(1.5 * s for s in full.spacing_mm)
    low = full.model_copy(update={"name": "3d_lowres", "spacing_mm": coarse})
    second = full.model_copy(update={"name": "3d_cascade_fullres", "previous_stage": "3d_lowres"})
    names = {"3d_lowres": low, "3d_fullres": full, "3d_cascade_fullres": second}
    plan.model_copy(update={"configurations": names}).write(workspace.plan)


def test_a_cascade_learns_from_what_each_fold_of_its_first_stage_held_out(workplace, tmp_path):
    folder, workspace = workplace()
    cascade(workspace)
    how = {"work": workspace.root, "epochs": 1, "jobs": 1, "device": "cpu", "tta": False}
    with pytest.raises(TrainingError, match=r"-c 3d_lowres --fold 0.*-c 3d_lowres --fold 4"):
        segpipe.train(folder, configuration="3d_cascade_fullres", **how)
    for fold in range(5):
        segpipe.train(folder, configuration="3d_lowres", fold=fold, **how)
    done = segpipe.train(folder, configuration="3d_cascade_fullres", **how)
    first = done.record
    assert isinstance(first, TrainingRecord)
    assert (
        weights(workspace, configuration="3d_cascade_fullres")["encoder.stages.0.0.convs.0.conv.weight"].shape[1] == 3
    )
    assert not (workspace.first_stage("3d_cascade_fullres", "tiny") / "case_0" / "image.b2nd").exists()
    # What training saw of a held-out case is what prediction makes of it.
    from segpipe.core.workspace import PreparedFiles
    from segpipe.dataset.load import load_image
    from segpipe.inference.predictor import Predictor, PredictorOptions
    from segpipe.io.arrays import read_array
    from segpipe.preprocessing.prepare import prepare

    (second,) = Predictor.load(done.model, FLOAT32, PredictorOptions(folds=("0",), tta=False)).stages
    assert second.previous is not None
    case = next(c for c in done.held_out.evaluation.cases).case
    source = next((folder / "images").glob(f"{case}.*"))
    image = load_image(case, [source], ("MR",)).volume
    first = Predictor.load(workspace.model("3d_lowres", "tiny"), steps_runtime(), PredictorOptions(folds=("0",)))
    expected = prepare(image, first.segment(image).labels, second.plan, second.configuration).segmentation
    held = read_array(PreparedFiles(workspace.first_stage("3d_cascade_fullres", "tiny") / case).previous)
    assert np.array_equal(held, expected)
    rows = segpipe.predict(source, tmp_path / "out", model=done.model, folds=("0",), tta=False, device="cpu")
    assert rows[0].status == "done"


def steps_runtime():
    from segpipe.execution.device import choose_runtime

    return choose_runtime("cpu")
