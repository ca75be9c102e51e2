"""Files appear whole or not at all, a full disk is said as such, and what a killed process left is swept."""

import ast
import errno
import os
from pathlib import Path

import blosc2
import numpy as np
import pytest

import segpipe
from segpipe.cli import app
from segpipe.core import whole as module
from segpipe.core.whole import partial_of, sweep, take_room, whole, write_atomically
from segpipe.execution.processes import map_cases, reason_of
from segpipe.io.arrays import write_array


def names(folder):
    return sorted(f.name for f in folder.iterdir())


def test_a_file_that_could_not_be_finished_leaves_the_old_one(tmp_path):
    write_atomically(tmp_path / "a.json", b"old")

    def fail():
        with whole(tmp_path / "a.json") as partial:
            partial.write_bytes(b"ne")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert ((tmp_path / "a.json").read_bytes(), names(tmp_path)) == (b"old", ["a.json"])


def refusing(number):
    def refuse(*_, **__):
        raise OSError(number, os.strerror(number))

    return refuse


def test_an_error_of_the_system_names_the_file_that_was_asked_for(tmp_path):
    (tmp_path / "a.json").mkdir()
    (tmp_path / "a.json" / "full").write_bytes(b"")
    with pytest.raises(OSError, match=r"a\.json'$") as error:
        write_atomically(tmp_path / "a.json", b"new")
    assert error.value.filename == str(tmp_path / "a.json")
    assert names(tmp_path) == ["a.json"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_said_as_such_whatever_the_library_makes_of_it(tmp_path, monkeypatch, number):
    def fail(*_, urlpath, **__):
        Path(urlpath).touch()
        raise RuntimeError("Could not build the array")

    monkeypatch.setattr(blosc2, "asarray", fail)
    with pytest.raises(RuntimeError, match="Could not build"):
        write_array(tmp_path / "image.b2nd", np.ones((4, 4, 4)))
    monkeypatch.setattr(Path, "write_bytes", refusing(number))
    with pytest.raises(OSError, match=r"image\.b2nd") as error:
        write_array(tmp_path / "image.b2nd", np.ones((4, 4, 4)))
    assert (error.value.errno, names(tmp_path)) == (number, [])


def full(_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/disk/mask.nii.gz")


def test_a_full_disk_is_no_fault_of_a_case_and_ends_the_batch():
    done = []
    with pytest.raises(OSError, match="No space left"):
        done.extend(map_cases(full, ["a", "b"], workers=1, bytes_each=1))
    assert done == []


def test_what_the_system_refuses_is_one_line_with_the_file(caplog):
    error = OSError(errno.EIO, os.strerror(errno.EIO), "/share/scan.nii.gz")
    assert reason_of(error, "case a") == f"/share/scan.nii.gz: {os.strerror(errno.EIO)}"
    assert reason_of(OSError("the tape is torn"), "case a") == "the tape is torn"
    assert caplog.records == []


@pytest.mark.parametrize(
    ("number", "advice"),
    [(errno.EIO, "look at the file"), (errno.ENOSPC, "make room"), (errno.ESTALE, "look at the file")],
)
def test_a_command_says_it_in_one_line_too(monkeypatch, capsys, number, advice):
    def fail():
        raise OSError(number, os.strerror(number), "/share/plan.json")

    monkeypatch.setattr(app, "app", fail)
    with pytest.raises(SystemExit) as ended:
        app.main()
    said = capsys.readouterr().err
    assert (ended.value.code, said.count("\n")) == (1, 1)
    assert said.startswith(f"segpipe: /share/plan.json: {os.strerror(number)}; {advice}")


def test_what_killed_processes_left_is_swept_and_nothing_else(tmp_path):
    target, gone = tmp_path / "image.b2nd", 4_194_999  # no process has so high a number
    for path in (target, tmp_path / "other.b2nd"):
        left = partial_of(path)
        left.with_name(left.name.replace(f"{os.getpid():x}.", f"{gone:x}.", 1)).touch()
    mine, elsewhere = partial_of(target), tmp_path / ".7.partial.image.b2nd"
    for file in (mine, elsewhere, tmp_path / ".hidden", tmp_path / "a.partial.b"):
        file.touch()
    assert len(names(tmp_path)) == 6
    write_array(target, np.ones((4, 4, 4)))
    assert len(names(tmp_path)) == 6, "its own leftover goes, the file comes"
    sweep(tmp_path)
    assert names(tmp_path) == sorted([mine.name, elsewhere.name, ".hidden", "a.partial.b", "image.b2nd"])
    # A number of a process is given again: who began after the file was written did not write it.
    os.utime(mine, (1, 1))
    sweep(tmp_path, "image.b2nd")
    assert mine.name not in names(tmp_path)
    sweep(tmp_path / "nowhere")


@pytest.mark.parametrize("has", [True, False])
def test_room_is_taken_without_changing_what_is_there(tmp_path, monkeypatch, has):
    if not has:
        monkeypatch.delattr(os, "posix_fallocate", raising=False)
        monkeypatch.setattr(module, "_PROBE_BYTES", 5000)
    size = 4096 + 12_000
    file = tmp_path / "map.npy"
    file.write_bytes(b"head")
    os.truncate(file, size)
    with file.open("r+b") as opened:
        take_room(opened, size)
    assert file.stat().st_size == size
    assert file.stat().st_blocks * 512 >= size
    assert file.read_bytes() == b"head" + bytes(size - 4)


def test_nothing_is_replaced_in_another_way():
    """Each of these has its own half-written files and its own errors: one place looks after both."""
    found = []
    for file in Path(segpipe.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                name, n = node.func.attr, len(node.args)
                moves = (name in ("replace", "rename") and n == 1 and not node.keywords) or name in (
                    "mkstemp",
                    "resolve",
                )
                if moves:
                    found.append(f"{file.name}: {ast.unparse(node)}")
    assert sorted(found) == [
        "whole.py: partial.replace(path)",
        "writable.py: tempfile.mkstemp(dir=folder, prefix=f'.{name}.')",
        "writable.py: tempfile.mkstemp(dir=there, prefix='.trial.')",
    ]
