import numpy as np
import pytest

from segpipe.dataset.entries import absence_of, entries_of
from segpipe.io.formats import write_volume
from tests.dicoms import write_series
from tests.phantoms import axis_grid

GRID = axis_grid((2, 3, 4))


def put(path):
    write_volume(path, np.arange(24, dtype=np.int16).reshape(GRID.shape), GRID)


def names(folder):
    return [p.name for p in entries_of(folder).images]


def test_everything_is_an_image_or_named(tmp_path):
    put(tmp_path / "a.nii.gz")
    put(tmp_path / "p4" / "d.nii.gz")
    for name in (
        "b.unknown",
        "c.nii.lzma",
        "README.txt",
        "a.json",
        "LICENSE",
        ".hidden.nii.gz",
        "Thumbs.db",
        ".DS_Store",
    ):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "empty").mkdir()
    entries = entries_of(tmp_path)
    assert names(tmp_path) == ["a.nii.gz"]
    assert entries.given.n_given == 8
    assert {p.what: p.a_case for p in entries.given.passed_over} == {
        "LICENSE": False, "README.txt": False, "a.json": False, "empty/": False,
        "b.unknown": True, "c.nii.lzma": True, "p4/ (1 image)": True,
    }  # fmt: skip
    assert dict(entries.lost).keys() == {"b", "c.nii", "p4"}
    assert any("the format .unknown is not read" in line for line in entries.given.lines())
    assert entries.given.loses_a_case


def test_a_link_that_leads_nowhere_is_an_image_that_is_not_there(tmp_path):
    put(tmp_path / "a.nii.gz")
    (tmp_path / "e.nii.gz").symlink_to(tmp_path / "store" / "e.nii.gz")
    (tmp_path / "patient5").symlink_to(tmp_path / "store" / "patient5")
    (tmp_path / "notes.txt").symlink_to(tmp_path / "store" / "notes.txt")
    entries = entries_of(tmp_path)
    assert [p.name for p in entries.images] == ["a.nii.gz", "e.nii.gz"]
    assert "link to" in absence_of(tmp_path / "e.nii.gz")
    assert absence_of(tmp_path / "a.nii.gz") is None
    assert [name for name, _ in entries.lost] == ["patient5"]


@pytest.mark.parametrize("beside", ["a.jpg", "a.unknown", "a"])
def test_what_lies_beside_an_image_of_its_name_loses_no_case(tmp_path, beside):
    put(tmp_path / "a.nii.gz")
    if beside == "a":
        put(tmp_path / "a" / "b.nii.gz")
    else:
        (tmp_path / beside).write_bytes(b"x")
    assert not entries_of(tmp_path).lost
    assert not entries_of(tmp_path).given.loses_a_case


def test_voxels_beside_their_header_are_used(tmp_path):
    put(tmp_path / "a.mhd")
    assert names(tmp_path) == ["a.mhd"]
    assert not entries_of(tmp_path).given.passed_over


def test_a_folder_of_dicom_files_is_an_image(tmp_path):
    write_series(tmp_path / "ct")
    assert names(tmp_path) == ["ct"]
    assert not entries_of(tmp_path).given.passed_over


@pytest.mark.parametrize(
    "name",
    ["a.nii.gz.md5", "checksums.md5", "x.label", "b.sha256", "b.sha1", "b.asc", "b.lock", "b.tmp", "b.bak", "scene.mrml",
     "w.itksnap", "b.annot.xml", "a.nii.gz.unknown", "a.nii.gz.annot.unknown"],
)  # fmt: skip
def test_what_accompanies_images_loses_no_case(tmp_path, name):
    put(tmp_path / "a.nii.gz")
    (tmp_path / name).write_bytes(b"x")
    entries = entries_of(tmp_path)
    assert not entries.lost
    assert [p.what for p in entries.given.passed_over] == [name]


@pytest.mark.parametrize("output", ["out", "results/out"])
def test_the_folder_for_results_is_not_counted(tmp_path, output):
    put(tmp_path / "a.nii.gz")
    put(tmp_path / output / "a.nii.gz")
    put(tmp_path / "p1" / "b.nii.gz")
    entries = entries_of(tmp_path, output=tmp_path / output)
    assert [p.what for p in entries.given.passed_over] == ["p1/ (1 image)"]


def test_a_folder_with_results_and_images_is_counted(tmp_path):
    put(tmp_path / "p1" / "out" / "b.nii.gz")
    put(tmp_path / "p1" / "b.nii.gz")
    assert entries_of(tmp_path, output=tmp_path / "p1" / "out").given.loses_a_case
