import numpy as np
import pytest

from segpipe.errors import DatasetError
from segpipe.inference.inputs import find_inputs
from segpipe.io.formats import write_volume
from tests.phantoms import axis_grid

GRID = axis_grid((2, 3, 4))


def put(path):
    write_volume(path, np.arange(24, dtype=np.int16).reshape(GRID.shape), GRID)


def found(tmp_path, n_channels=1, source="in", **how):
    return {c.id: c.problem for c in find_inputs(tmp_path / source, tmp_path / "out", n_channels, **how)}


def test_frames_have_the_ids_of_training(tmp_path):
    for n in range(3):
        put(tmp_path / "in" / f"frame_{n:04d}.nii.gz")
    frames = dict.fromkeys(["frame_0000", "frame_0001", "frame_0002"])
    assert found(tmp_path) == frames
    assert found(tmp_path, digits="case") == frames


def test_several_numbers_for_one_channel_are_noted(tmp_path):
    for name in ("a_0000", "a_0001", "b_0000"):
        put(tmp_path / "in" / f"{name}.nii.gz")
    notes = []
    assert list(found(tmp_path, note=notes.append)) == ["a_0000", "a_0001", "b"]
    assert [note.partition(":")[0] for note in notes] == ["a_0000, ..."]


def test_what_cannot_be_read_is_a_failed_case_and_counted(tmp_path):
    put(tmp_path / "in" / "a.nii.gz")
    put(tmp_path / "in" / "patient4" / "d.nii.gz")
    (tmp_path / "in" / "c.unknown").write_bytes(b"x")
    (tmp_path / "in" / "notes.txt").write_text("x", encoding="utf-8")
    (tmp_path / "in" / "e.nii.gz").symlink_to(tmp_path / "store" / "e.nii.gz")
    notes = []
    problems = found(tmp_path, note=notes.append)
    assert problems["a"] is None
    assert problems["c"] == "c.unknown: the format .unknown is not read; convert to .nii.gz"
    assert "link to" in problems["e"]
    assert "sub-folders" in problems["patient4"]
    assert "notes" not in problems
    assert notes[0] == "entries of in/: 5 given, 2 used, 3 passed over"


def test_a_gap_of_channels_in_a_folder(tmp_path):
    put(tmp_path / "in" / "h_0001.nii.gz")
    assert "expected them from _0000 without a gap" in found(tmp_path, 2)["h"]


def test_a_gap_of_channels_in_a_manifest(tmp_path):
    put(tmp_path / "in" / "t2.nii.gz")
    (tmp_path / "new.csv").write_text(
        "case;Image_1;image_2\nx;;in/t2.nii.gz\ny;in/t2.nii.gz;in/t2.nii.gz\nz;;\nw;in/gone.nii.gz;\n", encoding="utf-8"
    )
    problems = found(tmp_path, 2, "new.csv")
    assert "image_1 is empty and image_2 is not" in problems["x"]
    assert problems["y"] is None
    assert "names no image" in problems["z"]
    assert "no such file" in problems["w"]


def test_ids_from_file_names_that_collide_say_so(tmp_path):
    for patient in ("p1", "p2"):
        put(tmp_path / patient / "ct.nii.gz")
    (tmp_path / "new.csv").write_text("image\np1/ct.nii.gz\np2/ct.nii.gz\n", encoding="utf-8")
    assert "no column 'case' names another" in found(tmp_path, 1, "new.csv")["ct"]


def test_an_id_that_stands_twice_costs_its_rows_alone(tmp_path):
    put(tmp_path / "ct.nii.gz")
    (tmp_path / "new.csv").write_text(
        "case,image\na,ct.nii.gz\nb,ct.nii.gz\na,ct.nii.gz\nc/d,ct.nii.gz\n", encoding="utf-8"
    )
    problems = found(tmp_path, 1, "new.csv")
    assert "row 1, 3 of new.csv: case 'a' stands twice" in problems["a"]
    assert problems["b"] is None
    assert "cannot be a file name" in problems["c/d"]


def test_a_file_alone_is_named_as_its_folder_names_it(tmp_path):
    put(tmp_path / "in" / "b_0000.nii.gz")
    for digits in ("channel", "case"):
        assert found(tmp_path, 1, "in/b_0000.nii.gz", digits=digits) == found(tmp_path, 1, digits=digits)
    (case,) = find_inputs(tmp_path / "in" / "b_0000.nii.gz", tmp_path / "out", 1)
    assert (case.id, case.output.name) == ("b", "b.nii.gz")


def test_the_output_folder_in_the_input_folder_is_no_input(tmp_path):
    put(tmp_path / "in" / "a.nii.gz")
    put(tmp_path / "in" / "out" / "a.nii.gz")
    put(tmp_path / "in" / "out" / "z.nii.gz")
    notes = []
    cases = find_inputs(tmp_path / "in", tmp_path / "in" / "out", 1, note=notes.append)
    assert ([case.id for case in cases], notes) == (["a"], [])


def test_one_channel_of_several_beside_its_sister_asks_for_the_folder(tmp_path):
    for name in ("a_0000", "a_0001", "b_0000"):
        put(tmp_path / "in" / f"{name}.nii.gz")
    assert "a_0001.nii.gz beside it: give the folder" in found(tmp_path, 2, "in/a_0000.nii.gz")["a_0000"]
    assert found(tmp_path, 1, "in/a_0000.nii.gz") == {"a_0000": None}
    assert found(tmp_path, 2, "in/b_0000.nii.gz") == {"b_0000": None}


def test_a_link_that_leads_nowhere_says_where(tmp_path):
    (tmp_path / "in").symlink_to(tmp_path / "store")
    with pytest.raises(DatasetError, match=r"link to .*store, which is not there"):
        found(tmp_path)
