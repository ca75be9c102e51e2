"""Names of files that are no text: bytes of another encoding, as old archives leave them."""

import os
import sys

import pytest

from segpipe.core.system_names import name_problem, shown_name
from segpipe.dataset.match import match_dataset
from segpipe.errors import SegpipeError, UnreadableFileError
from segpipe.inference.inputs import find_inputs
from segpipe.io.formats import read_volume, write_volume
from tests.phantoms import write_small_dataset

ENCODING = sys.getfilesystemencoding().upper()
LATIN_1 = os.fsdecode(b"J\xfcrgen")


@pytest.fixture
def dataset(tmp_path):
    """A dataset one case of which has such a name, with a table and a folder of such names beside it."""
    folder = write_small_dataset(tmp_path / "dataset")
    for file in (folder / "images" / "case_1.nrrd", folder / "labels" / "case_1.nrrd"):
        file.rename(file.with_name(f"{LATIN_1}.nrrd"))
    (folder / "images" / f"{LATIN_1}.csv").write_bytes(b"")
    (folder / "images" / f"{LATIN_1}2").mkdir()
    return folder


def test_such_a_name_is_shown_with_its_bytes():
    assert shown_name(LATIN_1) == "J\\xfcrgen"
    assert name_problem(LATIN_1).startswith(f"its name is not {ENCODING}; rename it")
    assert name_problem("J\u00fcrgen") is None


def test_a_locale_without_such_letters_is_named(monkeypatch):
    monkeypatch.setattr("sys.getfilesystemencoding", lambda: "ascii")
    assert name_problem(LATIN_1) == "its name is not ASCII; rename it, or set PYTHONUTF8=1"


def test_its_case_is_a_finding_and_the_others_are_used(dataset):
    found = match_dataset(dataset)
    assert [case.id for case in found.cases] == ["case_0", "case_2", "case_3", "case_4", "case_5"]
    assert {f.case: f.severity for f in found.findings} == {"J\\xfcrgen": "error", "J\\xfcrgen2": "error"}
    assert f"not {ENCODING}" in found.findings[0].message
    assert "J\\\\xfcrgen.csv" in found.to_json()


def test_its_case_fails_in_prediction_and_the_others_are_done(dataset, tmp_path):
    problems = {case.id: case.problem for case in find_inputs(dataset / "images", tmp_path / "out", 1)}
    assert f"not {ENCODING}" in problems.pop("J\\xfcrgen")
    assert f"not {ENCODING}" in problems.pop("J\\xfcrgen2")
    assert set(problems.values()) == {None}
    assert len(problems) == 5


def test_a_dataset_in_a_folder_of_such_a_name_is_refused_in_one_line(dataset):
    folder = dataset.rename(dataset.with_name(LATIN_1))
    with pytest.raises(SegpipeError, match=rf"J\\xfcrgen.*not {ENCODING}; rename it"):
        match_dataset(folder)


def test_itk_is_not_given_such_a_name(dataset):
    """It would end the whole process."""
    folder = dataset.rename(dataset.with_name(LATIN_1))
    with pytest.raises(UnreadableFileError, match=f"not {ENCODING}"):
        read_volume(folder / "images" / "case_3.nrrd")
    sound = read_volume(folder / "images" / "case_0.nii.gz")
    with pytest.raises(UnreadableFileError, match=f"not {ENCODING}"):
        write_volume(folder / "new.nrrd", sound.array[0], sound.grid)
