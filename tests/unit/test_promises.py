"""The guard over the unit tests sees what they promise not to do."""

import os
import socket
import subprocess
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest

from segpipe.training.loop import Trainer
from tests.unit.conftest import GUARD

HERE = Path(__file__).parent


def spawn():
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        pool.submit(abs, -1).result()


def connect():
    with socket.socket() as opened:
        opened.connect(("127.0.0.1", 9))


FORBIDDEN = {
    "start a command": lambda: subprocess.run(["true"], check=True),
    "fork": os.fork,
    "start a worker": spawn,
    "train": lambda: Trainer.run(None, resume=False),
    "write a file": lambda: (HERE / "made.txt").write_text("x", encoding="utf-8"),
    "make a folder": lambda: (HERE / "made").mkdir(),
    "move a file in": lambda: (HERE / "conftest.py").rename(HERE / "moved.py"),
    "connect": connect,
}


@pytest.mark.parametrize("what", FORBIDDEN)
def test_what_a_unit_test_may_not_do_is_refused_and_remembered(what):
    with pytest.raises(AssertionError, match="a unit test may not do this"):
        FORBIDDEN[what]()
    assert GUARD.found
    GUARD.found.clear()
    assert sorted(p.name for p in HERE.glob("m*")) == []


def test_files_in_the_temporary_folder_are_free(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b.txt").write_text("x", encoding="utf-8")
    (tmp_path / "a").rename(tmp_path / "c")
    assert GUARD.found == []
