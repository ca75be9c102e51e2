import numpy as np
import pytest

from segpipe.core.artefact import Artefact, write_atomically
from segpipe.errors import ArtefactError


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
    (tmp_path / "cut.json").write_text('{"value": 1')
    with pytest.raises(ArtefactError, match="damaged or from another version"):
        Note.read(tmp_path / "cut.json")
    (tmp_path / "old.json").write_text('{"value": 1, "colour": 2}')
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
