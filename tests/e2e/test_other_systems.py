"""Interpreters as they are on other systems, imitated: what they lack, which encoding they have, what their consoles can print."""

import json
import os
import subprocess
import sys

import pytest

from tests.phantoms import write_small_dataset
from tests.posix import MODULES, OS, SIGNAL
from tests.release import ROOT

TINY = (
    "name = 'tiny'\ndescription = 'for tests'\n[planner]\nbase_features = 4\nmax_batch = 2\n[training]\noptimizer = 'adamw'\n"
    "learning_rate = 0.01\niterations_per_epoch = 2\nvalidation_batches = 1\n"
)
C_LOCALE = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
CONSOLES = (C_LOCALE, {"PYTHONIOENCODING": "ascii"}, {"PYTHONIOENCODING": "cp1252"})
WITHOUT_POSIX = f"""
import builtins, importlib, os, pkgutil, signal, sys, types

MODULES, MISSING = {sorted(MODULES)!r}, {{"os": {sorted(OS)!r}, "signal": {sorted(SIGNAL)!r}}}
real = builtins.__import__

def poorer(module):
    made = types.ModuleType(module.__name__)
    vars(made).update((name, value) for name, value in vars(module).items() if name not in MISSING[module.__name__])
    return made

poor = {{"os": poorer(os), "signal": poorer(signal)}}
poor["os"].name = "nt"

def seen_by_segpipe(name, scope=None, locals=None, fromlist=(), level=0):
    asked_by = (scope or {{}}).get("__name__", "")
    if asked_by.partition(".")[0] == "segpipe" and not level:
        if name in MODULES:
            raise ModuleNotFoundError(name)
        if name in poor:
            return poor[name]
    return real(name, scope, locals, fromlist, level)

def nothing_of_linux(event, args):
    if event == "open" and str(args[0]).startswith(("/proc/", "/sys/")):
        frame = sys._getframe(1)
        while frame is not None and frame.f_globals.get("__name__") == "pathlib":
            frame = frame.f_back
        if frame is not None and frame.f_globals["__name__"].partition(".")[0] == "segpipe":
            raise FileNotFoundError(2, "no such file", str(args[0]))

builtins.__import__ = seen_by_segpipe
sys.addaudithook(nothing_of_linux)
"""


def python(*words, **environment) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *map(str, words)],
        capture_output=True,
        cwd=ROOT,
        env=os.environ | environment,
        text=True,
        encoding="utf-8",
        errors="surrogateescape",
        timeout=300,
    )


@pytest.fixture
def dataset(tmp_path):
    """A dataset whose declaration holds letters that are no ASCII."""
    folder = write_small_dataset(tmp_path / "dataset", values=(1,))
    path = folder / "dataset.json"
    declared = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    declared |= {
        "name": "J\u00fcrgen \u25b6 \u03bcCT",
        "channel_names": {"0": "\u00fcbersicht"},
        "labels": {"background": 0, "gro\u00df \u00fc": 1},
    }
    path.write_text(json.dumps(declared, ensure_ascii=False), encoding="utf-8")
    return folder


def recipe(folder):
    (folder / "tiny.toml").write_text(TINY, encoding="utf-8")
    return folder / "tiny.toml"


@pytest.mark.slow
def test_every_module_and_a_run_without_what_windows_has_not(dataset, tmp_path):
    words = [
        "segpipe",
        "run",
        dataset,
        "--work",
        tmp_path / "work",
        "--recipe",
        recipe(tmp_path),
        "--epochs",
        1,
        "--jobs",
        1,
        "--device",
        "cpu",
    ]
    code = f"""{WITHOUT_POSIX}
import segpipe
for found in pkgutil.walk_packages(segpipe.__path__, "segpipe."):
    importlib.import_module(found.name)
import segpipe.inference.manifest
assert segpipe.inference.manifest._OPEN_FILES_STAY and not hasattr(segpipe.inference.manifest.os, "fork")
sys.argv = {list(map(str, words))!r}
from segpipe.cli.app import main
main()
"""
    done = python("-c", code)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "work" / "report" / "index.html").is_file()


@pytest.mark.parametrize("console", CONSOLES, ids=["C locale", "ascii", "cp1252"])
def test_letters_of_a_declaration_are_read_and_printed_whatever_the_console_is(dataset, tmp_path, console):
    for command in ("check", "plan"):
        done = python("cli.py", command, dataset, "--work", tmp_path / "work", "--jobs", 1, **console)
        assert done.returncode == 0, done.stderr
    kept = json.loads((tmp_path / "work" / "dataset.json").read_text(encoding="utf-8"))
    assert kept["channel_names"] == ["\u00fcbersicht"]


def test_a_file_whose_letters_the_locale_has_not_is_a_finding(dataset, tmp_path):
    for file in [*(dataset / "images").glob("case_0*"), *(dataset / "labels").glob("case_0*")]:
        # By its bytes: the suite itself may run under such a locale.
        os.rename(os.fsencode(file), os.fsencode(file).replace(b"case_0", "J\u00fcrgen".encode()))  # noqa: PTH104
    done = python("cli.py", "check", dataset, "--work", tmp_path / "work", "--jobs", 1, **C_LOCALE)
    assert done.returncode == 1
    assert "J\\xfcrgen" in done.stdout
    assert "PYTHONUTF8=1" in done.stdout
    assert "Traceback" not in done.stderr
    known = {"LC_ALL": "C.UTF-8", "PYTHONUTF8": "1"}
    assert python("cli.py", "check", dataset, "--work", tmp_path / "other", "--jobs", 1, **known).returncode == 0


@pytest.mark.slow
def test_text_is_opened_with_an_encoding_in_whatever_a_run_starts(dataset, tmp_path):
    line = (
        "run",
        dataset,
        "--work",
        tmp_path / "work",
        "--recipe",
        recipe(tmp_path),
        "--epochs",
        1,
        "--device",
        "cpu",
        "--jobs",
        2,
    )
    done = python("cli.py", *line, PYTHONWARNDEFAULTENCODING="1", PYTHONWARNINGS="always::EncodingWarning")
    assert done.returncode == 0, done.stderr
    warned = [line for line in done.stderr.splitlines() if "EncodingWarning" in line]
    assert warned, "libraries do warn: Python's warning is on"
    assert [line for line in warned if str(ROOT / "segpipe") in line] == []
