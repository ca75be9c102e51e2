"""Memory that is short, processes that were killed, plans that are replaced: nothing is lost, and what is lost is named."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

import segpipe
from segpipe.core.workspace import Workspace
from segpipe.dataset.splits import Splits, make_splits
from segpipe.errors import SegpipeError, UsageError, WorkerKilledError
from segpipe.inference.inputs import find_inputs
from segpipe.inference.manifest import Manifest, _claim_name
from segpipe.inference.run import predict
from segpipe.io.formats import write_volume
from segpipe.models.file import ModelFile
from segpipe.planning.schema import Plan
from segpipe.training.run import pack_model
from segpipe.training.schema import TrainingRecord
from segpipe.workflows.options import RunOptions
from segpipe.workflows.planning import plan_to_run
from segpipe.workflows.project import Project
from tests.engines import predictor_of
from tests.helpers.batch import SHAPE, drawn, rows_of
from tests.helpers.engine import Notes
from tests.helpers.inference import small_plan, threshold_predictor
from tests.phantoms import TINY_RECIPE, axis_grid, cube_case, write_case, write_small_dataset

FREE = "segpipe.preprocessing.room.free_bytes"
ALONE = "segpipe.inference.alone.in_own_process"


# Memory


def test_an_image_with_a_wrong_header_costs_itself_alone(six_scans, tmp_path, monkeypatch):
    write_volume(six_scans / "b.nii.gz", drawn(), axis_grid(SHAPE, (80.0, 60.0, 40.0)))
    monkeypatch.setattr(FREE, lambda: 10**9)
    cases = find_inputs(six_scans, tmp_path / "out", 1)
    rows = predict(cases, threshold_predictor(small_plan()), tmp_path / "out" / "log.jsonl")
    assert [row.case for row in rows if row.status == "done"] == ["a", "c", "d", "e", "f"]
    assert "voxel size 80 x 60 x 40 mm, training 2 x 1.5 x 1 mm: 13x16x21 would become 520x640x840" in rows[1].reason


def test_a_case_that_only_lacks_what_others_hold_is_read_when_they_are_done(six_scans, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(FREE, lambda: asked.append(0) or (10 if len(asked) == 3 else 10**9))
    cases = find_inputs(six_scans, tmp_path / "out", 1)
    rows = predict(cases, threshold_predictor(small_plan()), tmp_path / "out" / "log.jsonl")
    assert {row.status for row in rows} == {"done"}


def test_what_takes_long_is_said_before_it_begins(six_scans, tmp_path):
    write_volume(six_scans / "b.nii.gz", drawn(), axis_grid(SHAPE, (6.0, 4.5, 3.0)))
    notes = []
    cases = find_inputs(six_scans, tmp_path / "out", 1)[:2]
    rows = predict(cases, threshold_predictor(small_plan()), tmp_path / "out" / "log.jsonl", note=notes.append)
    assert len(notes) == 1
    assert notes[0].startswith("b: voxel size 6 x 4.5 x 3 mm, training 2 x 1.5 x 1 mm")
    assert any("27 times as many" in doubt for doubt in rows[1].doubts)
    assert not any("times as many" in doubt for doubt in rows[0].doubts)


def outlier_dataset(folder, outlier):
    """Six cases; the header of one says that voxels are 40 times larger."""
    write_small_dataset(folder, names={"background": 0, "cube": 1}, values=(1,))
    image, labels = cube_case(np.random.default_rng(9))
    for file in (*folder.glob(f"*/{outlier}.nrrd"), *folder.glob(f"*/{outlier}.nii.gz")):
        file.unlink()
    write_case(folder, outlier, image, labels, axis_grid(image.shape, (80.0, 60.0, 40.0)))
    return folder


def test_a_case_that_preprocessing_lost_is_not_read_again(tmp_path, monkeypatch):
    lost, other = make_splits({f"case_{n}": f"case_{n}" for n in range(6)}, "").folds[0].validation
    folder, recipe = outlier_dataset(tmp_path / "d", lost), tmp_path / "tiny.toml"
    recipe.write_text(TINY_RECIPE, encoding="utf-8")
    monkeypatch.setattr(FREE, lambda: 10**9)
    done = segpipe.run(folder, work=tmp_path / "w", recipe=recipe, jobs=1, epochs=1, tta=False, device="cpu")
    assert done.failed[lost].startswith("preprocessing: out of memory: voxel size 80 x 60 x 40 mm")
    assert done.evaluation.failed[lost].startswith("preprocessing: ")
    assert {row["case"] for row in rows_of(done.predictions)} == {other}
    assert [c.case for c in done.evaluation.cases] == [other]


# Killed processes


def killed_at(out: Path, *names: str) -> None:
    """Leave what a process leaves that was killed at some outputs."""
    (out / ".segpipe").mkdir(parents=True, exist_ok=True)
    for name in names:
        (out / ".segpipe" / f"{_claim_name(out / name)}.lock").touch()


@pytest.mark.parametrize("resume", [True, False])
def test_a_case_that_killed_the_process_is_tried_last_and_alone(
    six_scans, tmp_path, two_fold_model, monkeypatch, resume
):
    alone = []
    monkeypatch.setattr(ALONE, lambda do, source, again, case: alone.append(case.id) or do(source, again, case))
    killed_at(tmp_path / "out", "b.nii.gz")
    how = {"model": two_fold_model, "tta": False, "device": "cpu", "resume": resume}
    rows = segpipe.predict(six_scans, tmp_path / "out", **how)
    assert alone == ["b"]
    assert {row.status for row in rows} == {"done"}
    assert rows_of(tmp_path / "out")[-1]["case"] == "b"
    assert not (tmp_path / "out" / ".segpipe").exists()
    segpipe.predict(six_scans, tmp_path / "out", **how)
    assert alone == ["b"]


def test_a_case_that_kills_again_has_a_row_and_the_others_are_done(six_scans, tmp_path, two_fold_model, monkeypatch):
    tried = []

    def dies(_do, _source, _again, case):
        tried.append(case.id)
        raise WorkerKilledError("its process was killed (SIGKILL(-9))")

    monkeypatch.setattr(ALONE, dies)
    killed_at(tmp_path / "out", "b.nii.gz")
    how = {"model": two_fold_model, "tta": False, "device": "cpu", "resume": True}
    rows = segpipe.predict(six_scans, tmp_path / "out", **how)
    assert [row.status for row in rows] == ["done", "failed", "done", "done", "done", "done"]
    assert "SIGKILL" in rows[1].reason
    assert "Use a machine with more memory" in rows[1].reason
    # It is remembered by its row now: the next run does not die of it either.
    segpipe.predict(six_scans, tmp_path / "out", **how)
    assert tried == ["b", "b"]


def test_a_claim_that_is_held_is_no_killed_process(tmp_path):
    manifest = Manifest(tmp_path / "log.jsonl")
    claim = manifest.claim(tmp_path / "a.nii.gz", wait=False)
    assert not Manifest(tmp_path / "log.jsonl").was_killed(tmp_path / "a.nii.gz")
    manifest.release(claim)
    assert not manifest.was_killed(tmp_path / "a.nii.gz")


def test_who_is_stopped_in_an_orderly_way_leaves_no_suspects(six_scans, tmp_path, two_fold_model):
    class Stopped(Notes):
        def note(self, text):
            if text.startswith("b:"):
                raise KeyboardInterrupt

    def stop(_):
        raise KeyboardInterrupt

    cases = find_inputs(six_scans, tmp_path / "out", 1)
    with pytest.raises(KeyboardInterrupt):
        predict(cases, threshold_predictor(small_plan()), tmp_path / "out" / "log.jsonl", on_case=stop)
    assert not any(Manifest(tmp_path / "out" / "log.jsonl").was_killed(c.output) for c in cases)


# Two-dimensional data


def flat_dataset(folder, form):
    """Drawn pictures, 2D, in one of the forms that users have."""
    for number in range(5):
        rng = np.random.default_rng(number)
        labels = np.zeros((40, 48), dtype=np.uint8)
        labels[8 : 20 + number, 10:25] = 1
        labels[12:16, 12:18] = 2
        image = (100 * labels + rng.integers(20, 40, labels.shape)).astype(np.uint8)
        for kind, array in (("images", image), ("labels", labels)):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            name = folder / kind / f"s{number}"
            if form == "png":
                from PIL import Image

                Image.fromarray(array).save(f"{name}.png")
            else:
                shaped = {"xy": array, "xy1": array[:, :, None], "1xy": array[None]}[form]
                nib.save(nib.Nifti1Image(shaped, np.diag([0.8, 0.8, 0.8, 1.0])), f"{name}.nii.gz")
    declared = {"channel_names": {"0": "noNorm"}, "labels": {"background": 0, "a": 1, "b": 2}}
    (folder / "dataset.json").write_text(json.dumps(declared), encoding="utf-8")
    return folder


@pytest.mark.parametrize("form", ["png", "xy", "xy1", "1xy"])
def test_predicting_the_training_images_raises_no_doubts(tmp_path, form):
    folder = flat_dataset(tmp_path / "d", form)
    plan = segpipe.plan(folder, work=tmp_path / "w", jobs=1)
    assert list(plan.configurations) == ["2d"]

    def forward(x):
        return torch.cat([-((x[:, :1] - (30 + 100 * k)) ** 2) for k in range(3)], dim=1)

    cases = find_inputs(folder / "images", tmp_path / "out", 1)
    rows = predict(cases, predictor_of(plan, forward, "2d"), tmp_path / "out" / "log.jsonl")
    assert [row.status for row in rows] == ["done"] * 5
    assert [row.doubts for row in rows] == [()] * 5
    assert all(row.quality.spacing_outside == row.quality.volume_outside == () for row in rows)


# Plans and models


def test_run_keeps_a_plan_that_fits_and_what_it_replaces(workplace):
    folder, workspace = workplace()
    own = segpipe.plan(
        folder, work=workspace.root, recipe=workspace.root.parent / "work.toml", spacing_mm=(3, 3, 3), jobs=1
    )
    watch = Notes()
    project = Project.open(RunOptions(dataset=folder, work=workspace.root), watch)
    project.measure()
    assert plan_to_run(project, None) == own
    assert "kept (recipe tiny)" in watch.notes[-1]
    made = plan_to_run(project, str(workspace.root.parent / "work.toml"))
    assert made != own
    assert Plan.read(workspace.previous_plan) == own
    assert "replaced, since a recipe was asked for; the one before is" in watch.notes[-1]
    workspace.plan.write_text(
        workspace.plan.read_text(encoding="utf-8").replace(made.fingerprint_digest, "0" * 64), encoding="utf-8"
    )
    plan_to_run(project, None)
    assert "replaced, since the dataset changed" in watch.notes[-1]


def test_a_fold_that_leaves_the_model_file_is_named(trained):
    _, work = trained
    workspace = Workspace(work)
    plan = Plan.read(workspace.plan)
    first, second = (workspace.fold("3d_fullres", "tiny", k) for k in (0, 1))
    record = TrainingRecord.read(first.record)
    second.root.mkdir()
    second.weights.write_bytes(first.weights.read_bytes())
    record.model_copy(update={"fold": 1}).write(second.record)
    notes = []
    pack_model(workspace, plan, "3d_fullres", notes.append)
    assert notes == []
    assert list(ModelFile.read(workspace.model("3d_fullres", "tiny")).folds) == ["0", "1"]
    record.model_copy(update={"fold": 1, "plan_digest": "another"}).write(second.record)
    pack_model(workspace, plan, "3d_fullres", notes.append)
    assert list(ModelFile.read(workspace.model("3d_fullres", "tiny")).folds) == ["0"]
    assert notes[0].startswith("fold 1 is not in")
    assert "another plan trained it" in notes[0]


def test_a_finished_fold_is_extended_and_that_is_recorded(trained):
    folder, work = trained
    how = {"work": work, "jobs": 1, "device": "cpu", "tta": False}
    with pytest.raises(UsageError, match="fold 0 is finished with 1 epochs; --epochs 3 was not followed; use --extend"):
        segpipe.train(folder, epochs=3, resume=True, **how)
    with pytest.raises(UsageError, match="has 1 epochs already"):
        segpipe.train(folder, epochs=1, extend=True, **how)
    with pytest.raises(SegpipeError, match="has no checkpoint"):
        segpipe.train(folder, epochs=2, extend=True, fold=1, **how)
    before = (work / "models/3d_fullres/tiny/fold_0/weights.safetensors").read_bytes()
    done = segpipe.train(folder, epochs=3, extend=True, **how)
    assert done.record.epochs == 3
    assert [(e.epochs, e.iterations) for e in done.record.extensions] == [(1, 6)]
    assert done.folder.weights.read_bytes() != before
    rates = [json.loads(line)["learning_rate"] for line in done.folder.log.read_text(encoding="utf-8").splitlines()]
    assert rates[0] == 0
    assert rates[1] > 0.3 * 0.01
    assert rates[2] == 0
    assert segpipe.train(folder, epochs=3, resume=True, **how).record == done.record
    assert "continued after 1 epochs (6 iterations)" in segpipe.report(work).read_text(encoding="utf-8")
    assert Splits.read(work / "splits.json").digest() == done.record.splits_digest


def test_advice_of_prediction_names_no_option_that_it_lacks(tmp_path):
    for channel, spacing in ((0, 1.0), (1, 1.7)):
        write_volume(tmp_path / "in" / f"a_000{channel}.nii.gz", drawn(), axis_grid(SHAPE, (spacing, 1.0, 1.0)))
    cases = find_inputs(tmp_path / "in", tmp_path / "out", 2)
    (row,) = predict(cases, threshold_predictor(small_plan(n_channels=2)), tmp_path / "out" / "log.jsonl")
    assert "expected the same grid" in row.reason
    assert "--" not in row.reason
