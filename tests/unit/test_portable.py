"""Ids of cases that Windows or macOS refuses."""

import os
import tempfile
from types import SimpleNamespace

import pytest

from segpipe.core.workspace import Workspace
from segpipe.core.writable import confused_names
from segpipe.dataset import portable
from segpipe.dataset.match import match_again
from segpipe.dataset.portable import file_name_here, name_findings, portable_name_problems
from segpipe.dataset.run import check
from segpipe.inference.inputs import find_inputs
from tests.phantoms import write_small_dataset

COMPOSED, APART = "J\u00fcrgen", "Ju\u0308rgen"


@pytest.mark.parametrize(
    "name",
    ["CON", "con", "Prn.1", "aux.nii", "NUL", "COM1", "lpt9.left", "COM\u00b9", "CONIN$", "a.", "a ", "a:b", "a?",
     'a"b', "a|b", "a<b", "a*",
     "a\tb", "a\x1fb", "a\\b"],
)  # fmt: skip
def test_names_that_windows_refuses(name):
    problems = portable_name_problems([name, "b"])
    assert list(problems) == [name]
    assert problems[name].refused_by == "Windows"


@pytest.mark.parametrize(
    "name", ["CONTROL", "COM", "COM10", "aux_1", "a.b", " a", "nul1", COMPOSED, "\u4e2d", "p-1_2.3"]
)
def test_names_that_every_system_takes(name):
    assert portable_name_problems([name, "b"]) == {}


@pytest.mark.parametrize(("other", "kind"), [("CASE", "case"), ("cASE", "case")])
def test_names_that_differ_in_capitals_alone(other, kind):
    problems = portable_name_problems(["case", "b", other])
    assert {name: p.refused_by for name, p in problems.items()} == {"case": kind, other: kind}
    assert repr(other) in problems["case"].why


def test_names_that_differ_in_the_form_of_letters_alone():
    problems = portable_name_problems([COMPOSED, APART])
    assert {p.refused_by for p in problems.values()} == {"form"}
    assert set(portable_name_problems([COMPOSED.upper(), APART])) == {COMPOSED.upper(), APART}


@pytest.fixture
def odd(tmp_path):
    """A dataset with one id that Windows refuses, and two that differ in capitals."""
    folder = write_small_dataset(tmp_path / "dataset")
    names = sorted(p.name.split(".")[0] for p in (folder / "labels").iterdir())
    for old, new in zip(names, ("aux", "Case", "case"), strict=False):
        for file in (*(folder / "images").glob(f"{old}*"), *(folder / "labels").glob(f"{old}*")):
            file.rename(file.with_name(file.name.replace(old, new, 1)))
    return folder


def of(findings):
    return {f.case: f.severity for f in findings if f.rule == portable.RULE}


def test_they_are_warnings_where_the_system_takes_them(odd, tmp_path):
    found = check(odd, Workspace(tmp_path / "work"), workers=1)
    assert of(found.findings) == {"aux": "warning", "Case": "warning", "case": "warning"}
    assert len(found.dataset.cases) == 6
    assert of(found.dataset.findings) == {}, "the digest of a dataset says nothing of systems that take it"


def test_they_are_errors_on_windows_and_the_case_is_left_out(odd, tmp_path, monkeypatch):
    monkeypatch.setattr(portable, "os", SimpleNamespace(name="nt"))
    matched = match_again(odd, Workspace(tmp_path / "work"), None)
    assert of(matched.findings) == {"aux": "error"}
    assert "aux" not in {case.id for case in matched.cases}
    assert len(matched.cases) == 5


def test_they_are_errors_on_a_disk_that_confuses_them(odd, tmp_path, monkeypatch):
    monkeypatch.setattr(portable, "confused_names", lambda _: {"case"})
    matched = match_again(odd, Workspace(tmp_path / "work"), None)
    assert of(matched.findings) == {"Case": "error", "case": "error"}
    assert of(name_findings(matched, tmp_path)) == {"aux": "warning"}


def test_the_disk_is_tried_and_nothing_is_left_there(tmp_path, monkeypatch):
    assert confused_names(tmp_path / "not" / "yet") == set()
    assert list(tmp_path.iterdir()) == []
    # What a disk that ignores capitals does: the file that was made is found by the other name.
    monkeypatch.setattr("pathlib.Path.exists", lambda path: os.path.lexists(str(path).replace("TRIAL", "trial")))
    assert confused_names(tmp_path) == {"case"}
    assert list(tmp_path.iterdir()) == []


def test_a_disk_whose_encoding_has_not_the_letters_is_not_asked_for_them(tmp_path, monkeypatch):
    made = tempfile.mkstemp

    def ascii_alone(**options):
        options["prefix"].encode("ascii")
        return made(**options)

    monkeypatch.setattr("tempfile.mkstemp", ascii_alone)
    assert confused_names(tmp_path) == set()


def test_an_id_of_a_list_is_a_name_of_a_file(tmp_path, monkeypatch):
    (tmp_path / "list.csv").write_text("case,image\naux,image.nii\na:b,image.nii\nc,image.nii\n", encoding="utf-8")
    (tmp_path / "image.nii").write_bytes(b"")
    assert [case.problem for case in find_inputs(tmp_path / "list.csv", tmp_path / "out", 1)] == [None] * 3
    monkeypatch.setattr(portable, "os", SimpleNamespace(name="nt"))
    cases = find_inputs(tmp_path / "list.csv", tmp_path / "out", 1)
    assert [case.output.name for case in cases] == ["aux_.nii.gz", "a_b_.nii.gz", "c.nii"]
    assert [case.problem is None for case in cases] == [False, False, True]
    assert "cannot be a file name" in cases[0].problem


def test_a_similar_name_is_given_for_one_that_is_refused():
    assert file_name_here("a/b") == "a_b"
    assert file_name_here("a b") is None
