import json
from hashlib import sha256

import numpy as np
import pytest
from pydantic import ValidationError

from segpipe.core.artefact import Artefact, Record, first_problem, json_lines
from segpipe.core.whole import write_atomically
from segpipe.dataset.splits import Fold, Splits
from segpipe.errors import ArtefactError
from segpipe.postprocessing.schema import Rule
from segpipe.version import __version__


class Note(Artefact):
    value: float
    names: tuple[str, ...] = ()


@pytest.mark.parametrize("value", [1.5, float("nan"), float("inf"), -float("inf")])
def test_what_is_written_is_read(tmp_path, value):
    note = Note(value=value, names=("a", "b"))
    again = Note.read(note.write(tmp_path / "deep" / "note.json"))
    np.testing.assert_equal(again.value, value)
    assert again.digest() == note.digest()


def test_an_artefact_is_frozen_and_closed():
    with pytest.raises(ValueError, match="frozen"):
        Note(value=1).value = 2
    with pytest.raises(ValueError, match="Extra"):
        Note(value=1, other=2)


def test_damage_is_named(tmp_path):
    with pytest.raises(ArtefactError, match="not found; run the earlier stage"):
        Note.read(tmp_path / "gone.json")
    (tmp_path / "cut.json").write_text('{"value": 1', encoding="utf-8")
    with pytest.raises(ArtefactError, match="damaged or from another version"):
        Note.read(tmp_path / "cut.json")
    (tmp_path / "old.json").write_text('{"value": 1, "colour": 2}', encoding="utf-8")
    with pytest.raises(ArtefactError, match="colour"):
        Note.read(tmp_path / "old.json")


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    write_atomically(path, b"old")
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


# Versions -------------------------------------------------------------------------------------------------------------------------


class Renamed(Artefact):
    """Version 0 called its value ``number``, and version 1 had it in centimetres."""

    schema_version: int = 2
    migrations = {
        0: lambda old: {"length_cm": old["number"]},
        1: lambda old: {"length_mm": 10 * old["length_cm"]},
    }
    length_mm: float


def written(path, **content):
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def test_a_file_names_the_version_that_wrote_it_and_no_digest_does(tmp_path, monkeypatch):
    note = Note(value=1)
    first = note.write(tmp_path / "first.json").read_text(encoding="utf-8")
    assert json.loads(first) == {"made_by": __version__, **json.loads(note.to_json())}
    monkeypatch.setattr("segpipe.core.artefact.__version__", "9.1.0")
    second = note.write(tmp_path / "second.json")
    assert second.read_text(encoding="utf-8") == first.replace(__version__, "9.1.0")
    assert Note.read(second) == note
    assert Note.read(second).digest() == note.digest() == sha256(note.to_json().encode()).hexdigest()
    assert "made_by" not in note.to_json() + str(note.model_dump())


def test_schema_version_is_hashed():
    assert Note(value=1).digest() != Note(value=1).model_copy(update={"schema_version": 2}).digest()


@pytest.mark.parametrize("made_by", [{}, {"made_by": "0.0.1"}])
def test_an_older_artefact_is_migrated_step_by_step(tmp_path, made_by):
    assert Renamed.read(written(tmp_path / "0.json", schema_version=0, number=3, **made_by)) == Renamed(length_mm=30)
    assert Renamed.read(written(tmp_path / "1.json", schema_version=1, length_cm=3, **made_by)) == Renamed(length_mm=30)
    assert Renamed.read(written(tmp_path / "2.json", schema_version=2, length_mm=3, **made_by)) == Renamed(length_mm=3)


def test_an_older_artefact_without_a_migration_is_refused(tmp_path):
    path = written(tmp_path / "old.json", schema_version=0, anything=2, made_by="0.0.1")
    with pytest.raises(
        ArtefactError, match=r"old\.json: Note has schema version 0 .* segpipe 0\.0\.1; .* use the version"
    ) as error:
        Note.read(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("made_by", "advice"),
    [
        ({"made_by": "9.1.0"}, "was made by segpipe 9.1.0; segpipe {} reads up to 1: install segpipe 9.1.0 or newer"),
        ({}, "was made by an unnamed version of segpipe; segpipe {} reads up to 1: install a newer segpipe"),
    ],
)
def test_a_newer_artefact_is_refused_before_its_fields_are_looked_at(tmp_path, made_by, advice):
    path = written(tmp_path / "new.json", schema_version=99, colour=2, **made_by)
    with pytest.raises(ArtefactError) as error:
        Note.read(path)
    assert str(error.value) == f"{path}: Note has schema version 99 and {advice.format(__version__)}"


def test_a_version_that_is_no_number_is_damage(tmp_path):
    with pytest.raises(ArtefactError, match=r"expected a whole number, found '99'.*damaged"):
        Note.read(written(tmp_path / "odd.json", schema_version="99", value=1))


def test_a_text_inside_another_file_is_of_the_version_of_that_file():
    with pytest.raises(ArtefactError, match=r"made by segpipe 9\.1\.0"):
        Note.from_json('{"schema_version": 99}', advice="none", made_by="9.1.0")
    with pytest.raises(ArtefactError, match=r"value: Field required \(1 problem\(s\) in all\); .*: make it again"):
        Note.from_json("{}", advice="make it again")


class Pair(Record):
    left: Note
    right: int = 0


@pytest.mark.parametrize(
    ("content", "phrase"),
    [
        ({}, "left: Field required"),
        (
            {"left": {"value": "x"}},
            "left.value: Input should be a valid number, unable to parse string as a number, found 'x'",
        ),
        (
            {"left": {"value": 1}, "right": "9" * 99 + "x"},
            "right: Input should be a valid integer, unable to parse string as an integer",
        ),
    ],
)
def test_the_first_problem_is_a_phrase(content, phrase):
    with pytest.raises(ValidationError) as error:
        Pair.model_validate(content)
    assert first_problem(error.value) == phrase


def test_damaged_lines_of_a_log_are_passed_over():
    text = '{"epoch": 1}\n{"epo\n3\n[]\nnull\n' + "[" * 100_000 + '\n{"other": 1}\n{"epoch": 2}\n'
    assert json_lines(text, "epoch") == [{"epoch": 1}, {"epoch": 2}]


def test_a_case_that_is_held_out_is_not_trained_on():
    """By hand: the scores would look better than they are, without a word."""
    folds = (Fold(train=("a", "b"), validation=("c",)), Fold(train=("b", "c"), validation=("b",)))
    with pytest.raises(ValueError, match=r"folds\.1: case b is held out and trained on"):
        Splits(dataset_digest="", grouped=False, cases=("a", "b", "c"), folds=folds)


def test_a_rule_has_a_size_that_a_body_has():
    for size in (float("inf"), 1e308, float("nan"), -1):
        with pytest.raises(ValueError, match="min_mm3"):
            Rule(label="liver", min_mm3=size)
