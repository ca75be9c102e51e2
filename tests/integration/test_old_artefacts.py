"""What an older version wrote is opened by this one: a workspace, a model, half-trained checkpoints."""

import shutil
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest

import segpipe
from segpipe.io.formats import read_volume
from segpipe.training.schema import TrainingRecord

KEPT = sorted((Path(__file__).parents[1] / "fixtures").glob("workspace-*.zip"))


@pytest.fixture(params=KEPT, ids=lambda p: p.stem)
def old(request, tmp_path) -> Path:
    """The folder of a kept dataset and its workspace, free to be changed."""
    with ZipFile(request.param) as archive:
        archive.extractall(tmp_path)
    return tmp_path


def test_archives_are_small_and_there():
    assert KEPT
    assert all(p.stat().st_size <= 1_000_000 for p in KEPT)


def test_a_half_trained_fold_is_trained_to_its_end(old):
    log = old / "work/models/3d_fullres/tiny/fold_1/log.jsonl"
    before = log.read_text(encoding="utf-8").splitlines()
    result = segpipe.train(old / "dataset", work=old / "work", fold=1, resume=True, jobs=1, device="cpu")
    record = TrainingRecord.read(result.folder.record)
    assert (record.epochs, len(before)) == (8, 3)
    assert log.read_text(encoding="utf-8").splitlines()[:3] == before
    assert result.held_out is not None


def test_a_half_taught_student_is_taught_to_its_end(old):
    segpipe.distill(
        old / "dataset", work=old / "work", teacher=old / "work/models/3d_fullres/tiny", student="width=0.5",
        kd=["voxel", "masked:at=encoder.stages.1"], name="half", compare=False, resume=True, jobs=1, device="cpu",
    )  # fmt: skip
    folder = old / "work/models/3d_fullres/tiny+planned_width=0.5~half/fold_0"
    assert TrainingRecord.read(folder / "record.json").epochs == 4


def test_a_model_predicts_what_it_predicted(old):
    kept = old / "work/predictions/3d_fullres/tiny/fold_0"
    case = next(kept.glob("case_*.nii.gz"))
    shutil.copytree(old / "dataset/images", old / "scans")
    segpipe.predict(old / "scans", old / "out", model=old / "work/models/3d_fullres/tiny", jobs=1, device="cpu")
    now, then = (read_volume(folder / case.name).array for folder in (old / "out", kept))
    # Another processor computes in another precision.
    assert (now != then).mean() < 1e-3
    assert set(np.unique(now)) == {0, 2, 5}


def test_a_finished_cross_validation_is_complete(old):
    found = segpipe.crossval_status(old / "work")
    assert {standing.state for standing in found.standings.values()} == {"done"}
    assert found.result is not None
    assert found.model is not None
