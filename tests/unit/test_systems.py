"""What Windows and macOS have not is not used, or only where it is there."""

import ast
import json
from functools import cache
from pathlib import PureWindowsPath

import pytest

from segpipe.inference.schema import PredictionRow
from tests.posix import places, starts_by_fork, unguarded
from tests.release import ROOT

SYSTEM_FILES = {
    "core/whole.py": "the machine alone tells whose an unfinished file is",
    "execution/accelerator.py": "signs of a driver; a path that is not there is no sign",
    "execution/device.py": "flags of the processor; none where it cannot be read",
    "execution/memory.py": "limits of groups and the peak; no limit and no peak where they cannot be read",
    "inference/memory.py": "a folder on a disk; the system's own where there is none",
}
"""Modules that name paths of Linux, and what they do on another system."""


@cache
def trees() -> dict[str, ast.Module]:
    folder = ROOT / "segpipe"
    return {
        p.relative_to(folder).as_posix(): ast.parse(p.read_text(encoding="utf-8")) for p in sorted(folder.rglob("*.py"))
    }


@pytest.mark.parametrize(
    "code",
    [
        "import fcntl", "from resource import getrlimit", "import os\nos.fork()", "os.pread(d, 1, 0)", "from os import getuid",
        "signal.SIGKILL", "psutil.Process().cpu_affinity()", "path.symlink_to(other)", "Popen(words, preexec_fn=f)",
        "if x:\n  os.uname()", "with suppress(ValueError):\n  import pwd", "try:\n  os.statvfs(p)\nexcept OSError: pass",
        "if os.sched_getaffinity(0): pass",
    ],
)  # fmt: skip
def test_a_use_of_what_windows_has_not_is_found(code):
    assert len(list(unguarded(ast.parse(code)))) == 1


@pytest.mark.parametrize(
    "code",
    [
        "with suppress(ImportError):\n  import resource\n  resource.getrlimit(0)", "if os.name == 'posix':\n  os.fork()",
        "n = os.getuid() if hasattr(os, 'getuid') else 0", "try:\n  import fcntl\nexcept ImportError: pass", "os.getpid()",
        "if sys.platform == 'linux':\n  os.sched_getaffinity(0)", "getattr(os, 'O_BINARY', 0)", "signal.SIGTERM",
    ],
)  # fmt: skip
def test_a_guarded_use_is_not(code):
    assert list(unguarded(ast.parse(code))) == []


def test_nothing_that_windows_or_macos_has_not_is_used_unguarded():
    assert {name: found for name, tree in trees().items() if (found := list(unguarded(tree)))} == {}


def test_paths_of_linux_are_named_where_another_system_is_thought_of():
    assert {name for name, tree in trees().items() if list(places(tree))} == set(SYSTEM_FILES)


@pytest.mark.parametrize(
    "code",
    [
        "from concurrent.futures import ProcessPoolExecutor", "from multiprocessing import Pool", "multiprocessing.Process(target=f)",
        'get_context("fork")', "get_context()", 'Fabric(start_method="popen")', "os.fork()", "DataLoader(d, num_workers=2)",
        'multiprocessing.set_start_method("fork")',
    ],
)  # fmt: skip
def test_a_process_that_may_be_forked_is_found(code):
    assert list(starts_by_fork(ast.parse(code)))


def test_processes_are_started_anew_on_every_system():
    assert {name: found for name, tree in trees().items() if (found := list(starts_by_fork(tree)))} == {}


def annotations_of_records(tree):
    classes = (node for node in ast.walk(tree) if isinstance(node, ast.ClassDef))
    for one in classes:
        if any("Record" in ast.unparse(base) or "Artefact" in ast.unparse(base) for base in one.bases):
            yield from ((one.name, ast.unparse(s.annotation)) for s in one.body if isinstance(s, ast.AnnAssign))


def test_paths_in_records_are_written_for_every_system():
    plain = [
        (file, name)
        for file, tree in trees().items()
        for name, annotation in annotations_of_records(tree)
        if "Path" in annotation and "RecordedPath" not in annotation
    ]
    assert plain == []


def test_a_path_of_windows_is_written_with_slashes():
    output = PureWindowsPath("C:\\results\\a.nii.gz")
    row = PredictionRow.model_construct(case="a", status="done", output=output, saved=(output,), model="")
    written = json.loads(row.model_dump_json())
    assert (written["output"], written["saved"]) == ("C:/results/a.nii.gz", ["C:/results/a.nii.gz"])
    assert PredictionRow.model_validate(written).output.name == "a.nii.gz"


def test_relative_paths_are_put_in_words_with_slashes():
    found = [
        (file, node.lineno)
        for file, tree in trees().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "str" and "relative_to" in ast.unparse(node)
    ]
    assert found == []
