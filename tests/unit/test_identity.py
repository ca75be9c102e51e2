"""A workspace knows its dataset: it may move, and no other takes its place."""

import os
import shutil

import pytest

from segpipe.core.workspace import Workspace
from segpipe.dataset.check import Expectations
from segpipe.dataset.match import match_dataset
from segpipe.dataset.store import read_case
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


def test_a_dataset_may_grow_and_lose_cases_at_its_place_alone(place, tmp_path):
    folder, workspace = place
    for kind in ("images", "labels"):
        shutil.copy(folder / kind / "case_0.nii.gz", folder / kind / "new.nii.gz")
    assert require_same_dataset(folder, workspace) is None
    moved = folder.rename(tmp_path / "moved")
    with pytest.raises(SegpipeError, match=r"only \S+moved has 1 case\(s\): new") as error:
        require_same_dataset(moved, workspace)
    assert str(folder) in str(error.value)


def test_a_manifest_of_some_of_the_cases_is_another_dataset(place, tmp_path):
    folder, workspace = place
    some = tmp_path / "some.csv"
    some.write_text(
        f"case,image,label\ncase_0,{folder}/images/case_0.nii.gz,{folder}/labels/case_0.nii.gz\n", encoding="utf-8"
    )
    with pytest.raises(SegpipeError, match=r"has 1 case\(s\): case_1") as error:
        require_same_dataset(some, workspace)
    assert str(folder) in str(error.value)
    assert str(some) in str(error.value)


def checked(folder, root):
    """A workspace in which `segpipe check` alone read the cases of a dataset."""
    workspace = Workspace(root)
    matched = match_dataset(folder)
    for case in matched.cases:
        read_case(case, Expectations.of(matched), workspace.case(case.id))
    return workspace


def test_what_check_alone_read_is_whose_the_workspace_is(place, tmp_path):
    folder = place[0]
    workspace = checked(folder, tmp_path / "checked")
    other = shutil.copytree(folder, tmp_path / "brain" / "data")
    for file in (*other.glob("images/*"), *other.glob("labels/*")):
        file.rename(file.with_name(f"x{file.name}"))
    with pytest.raises(SegpipeError, match="it has no case 'case_0'") as error:
        require_same_dataset(other, workspace)
    assert f"the dataset {folder};" in str(error.value)
    assert str(other) in str(error.value)
    assert require_same_dataset(folder, workspace) is None
    assert require_same_dataset(folder.rename(tmp_path / "moved"), workspace) is None


def test_manifests_in_one_folder_are_no_evidence_of_one_dataset(place, tmp_path):
    folder = place[0]
    workspace = checked(folder, tmp_path / "checked")
    other = write_small_dataset(tmp_path / "brain", n_cases=1, shape=(8, 8, 8))
    manifest = tmp_path / "other.csv"
    manifest.write_text(f"case,image,label\nx,{other}/images/case_0.nii.gz,{other}/labels/case_0.nii.gz\n", "utf-8")
    with pytest.raises(SegpipeError, match="it has no case 'case_0'"):
        require_same_dataset(manifest, workspace)


def test_an_empty_workspace_is_anybodys(place, tmp_path):
    assert require_same_dataset(place[0], Workspace(tmp_path / "new")) is None
