"""Every text file is UTF-8, whichever system it is opened on."""

import ast
import os
import sys

import pytest

from tests.encodings import with_lines_of_the_system, without_encoding
from tests.release import ROOT

FORGETS = (
    'open("a")', 'open("a", "w")', 'path.open()', 'path.open("a")', 'path.open(mode)', 'open("a", mode="w")', "path.read_text()",
    "path.write_text(text)", 'os.fdopen(handle, "w")', 'NamedTemporaryFile("w")', 'tempfile.NamedTemporaryFile(mode="w+")',
    "io.TextIOWrapper(raw)", "logging.FileHandler(path)", "subprocess.run(words, text=True)", "Popen(words, universal_newlines=True)",
    'path.open("b" if binary else "w")',
)  # fmt: skip
STATES = (
    'open("a", "rb")', 'open("a", encoding="utf-8")', 'path.open("ab" if n else "wb")', 'path.read_text("utf-8")',
    'path.write_text(text, encoding="utf-8")', 'os.fdopen(handle, "wb")', "NamedTemporaryFile()", "os.open(path, flags)",
    "Image.open(path)", 'subprocess.run(words, text=True, encoding="utf-8")', "subprocess.run(words, capture_output=True)",
)  # fmt: skip


@pytest.mark.parametrize("call", FORGETS)
def test_a_call_without_an_encoding_is_found(call):
    assert len(list(without_encoding(ast.parse(call)))) == 1


@pytest.mark.parametrize("call", STATES)
def test_a_call_that_opens_bytes_or_states_its_encoding_is_not(call):
    assert list(without_encoding(ast.parse(call))) == []


def test_text_is_opened_with_an_encoding():
    files = [*ROOT.glob("*.py"), *(ROOT / "segpipe").rglob("*.py"), *(ROOT / "tests").rglob("*.py")]
    found = [
        f"{path.relative_to(ROOT)}:{call.lineno}"
        for path in files
        for call in without_encoding(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert found == []


@pytest.mark.parametrize(
    "call",
    [
        'path.write_text(text, encoding="utf-8")',
        'path.open("a", encoding="utf-8")',
        'open(p, mode="w", encoding="utf-8")',
    ],
)
def test_a_call_that_leaves_the_ends_of_lines_to_the_system_is_found(call):
    assert len(list(with_lines_of_the_system(ast.parse(call)))) == 1
    assert list(with_lines_of_the_system(ast.parse(call.replace('"utf-8"', '"utf-8", newline=""')))) == []


def test_files_have_the_same_bytes_on_every_system():
    found = [
        f"{path.relative_to(ROOT)}:{call.lineno}"
        for path in (ROOT / "segpipe").rglob("*.py")
        for call in with_lines_of_the_system(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert found == []


@pytest.mark.skipif(
    not sys.flags.warn_default_encoding, reason="python -X warn_default_encoding, as xdist's workers and nox have it"
)
def test_text_without_an_encoding_is_an_error_while_tests_run(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"")
    read = (tmp_path / "a.txt").read_text
    with pytest.raises(EncodingWarning):
        read()


def test_the_workers_of_the_tests_are_strict():
    assert "PYTEST_XDIST_WORKER" not in os.environ or sys.flags.warn_default_encoding
