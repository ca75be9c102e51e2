"""A workspace knows its dataset: it may move, and no other takes its place."""

import os
import shutil

import pytest

from segpipe.core.workspace import Workspace
from segpipe.dataset.match import match_dataset
from segpipe.errors import SegpipeError
from segpipe.workflows.identity import require_same_dataset
from tests.phantoms import write_small_dataset


@pytest.fixture
def place(tmp_path):
    """A dataset called data, and a workspace that knows it."""
    folder = write_small_dataset(tmp_path / "liver" / "data", n_cases=2, shape=(8, 8, 8))
    workspace = Workspace(tmp_path / "work")
    match_dataset(folder).write(workspace.dataset)
    return folder, workspace


def test_a_dataset_at_its_place_is_the_same_whatever_changed(place):
    folder, workspace = place
    (folder / "labels" / "case_0.nii.gz").write_bytes(b"another")
    assert require_same_dataset(folder, workspace) is None


def test_another_dataset_of_that_name_is_refused_with_both_paths(place, tmp_path):
    folder, workspace = place
    other = write_small_dataset(tmp_path / "brain" / "data", n_cases=2, shape=(8, 8, 9))
    with pytest.raises(SegpipeError, match="--work") as error:
        require_same_dataset(other, workspace)
    assert str(folder) in str(error.value)
    assert str(other) in str(error.value)


def test_equal_sizes_are_no_evidence_while_the_files_are_there(place, tmp_path):
    folder, workspace = place
    other = shutil.copytree(folder, tmp_path / "brain" / "data")
    for file in (other / "images").iterdir():
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
        os.utime(file, (1, 1))
    with pytest.raises(SegpipeError, match="has other files"):
        require_same_dataset(other, workspace)


def test_other_cases_are_another_dataset(place, tmp_path):
    other = shutil.copytree(place[0], tmp_path / "brain" / "data")
    for file in (*other.glob("images/*"), *other.glob("labels/*")):
        file.rename(file.with_name(f"x{file.name}"))
    with pytest.raises(SegpipeError, match="no case id is in both"):
        require_same_dataset(other, place[1])


def test_a_folder_that_moved_is_the_same_and_that_is_said(place, tmp_path):
    folder, workspace = place
    moved = folder.rename(tmp_path / "moved")
    assert f"the dataset was at {folder} before" in require_same_dataset(moved, workspace)


def test_a_copy_without_its_times_is_the_same(place, tmp_path):
    folder, workspace = place
    copy = shutil.copytree(folder, tmp_path / "copy", copy_function=shutil.copyfile)
    for file in copy.rglob("*.*"):
        os.utime(file, (1, 1))
    assert "its cases are the same" in require_same_dataset(copy, workspace)
    shutil.rmtree(folder)
    assert "its cases are the same" in require_same_dataset(copy, workspace)


def test_a_moved_dataset_may_have_grown(place, tmp_path):
    folder, workspace = place
    moved = folder.rename(tmp_path / "moved")
    for kind in ("images", "labels"):
        shutil.copy(moved / kind / "case_0.nii.gz", moved / kind / "new.nii.gz")
    assert require_same_dataset(moved, workspace) is not None


def test_an_empty_workspace_is_anybodys(place, tmp_path):
    assert require_same_dataset(place[0], Workspace(tmp_path / "new")) is None
