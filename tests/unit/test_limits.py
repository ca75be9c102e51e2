import threading
import time

import numpy as np
import pytest

from segpipe.errors import UnreadableFileError
from segpipe.execution.limits import time_limit
from segpipe.io import formats, nifti


def _hang():
    end = time.monotonic() + 30
    while time.monotonic() < end:
        try:
            time.sleep(0.001)
        except Exception:  # noqa: BLE001 - as libraries do
            continue


def _limited():
    with time_limit(0.02, lambda: UnreadableFileError("reading took over 0.02 s")):
        _hang()


def test_what_takes_too_long_is_stopped_and_what_does_not_goes_on():
    with pytest.raises(UnreadableFileError, match=r"over 0\.02 s"):
        _limited()
    with time_limit(0.02, lambda: UnreadableFileError("")):
        done = 1
    time.sleep(0.04)
    assert done == 1


def test_it_is_stopped_in_any_thread():
    reasons = []

    def work():
        try:
            _limited()
        except UnreadableFileError as error:
            reasons.append(str(error))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(5)
    assert reasons == ["reading took over 0.02 s"]


def test_an_error_in_time_is_passed_on():
    with pytest.raises(ZeroDivisionError), time_limit(5, lambda: UnreadableFileError("")):
        raise ZeroDivisionError


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "a.nii.gz"
    formats.write_volume(path, np.zeros((2, 3, 4), np.uint8), formats.Grid.of_spacing((2, 3, 4), (1.0, 1.0, 1.0)))
    return path


@pytest.mark.parametrize("read", [formats.read_header, formats.read_volume, formats.read_label_volume])
def test_a_file_that_hangs_is_that_files_failure(image, monkeypatch, read):
    monkeypatch.setattr(formats, "LEAST_LIMIT_S", 0.02)
    for name in ("read_header", "read"):
        monkeypatch.setattr(nifti, name, lambda path: _hang())
    with pytest.raises(UnreadableFileError, match=r"a\.nii\.gz: reading took over 0 s"):
        read(image)


@pytest.mark.parametrize("read", [formats.read_header, formats.read_volume, formats.read_label_volume])
def test_whatever_a_library_raises_is_that_files_failure(image, monkeypatch, read):
    def fail(path):
        raise ValueError("w2 should be positive")

    for name in ("read_header", "read"):
        monkeypatch.setattr(nifti, name, fail)
    with pytest.raises(UnreadableFileError, match=r"a\.nii\.gz: cannot be read \(ValueError: w2 should be positive\)"):
        read(image)
    monkeypatch.setattr(nifti, "header_notes", fail)
    (note,) = formats.header_notes(image)
    assert note.severity == "warning"
    assert "w2 should be positive" in note.message


def test_the_limit_grows_with_the_file(tmp_path):
    (tmp_path / "a.nii").write_bytes(b"0" * 500_000)
    assert formats.reading_limit_s([tmp_path / "a.nii"]) == 182
    assert formats.reading_limit_s(formats._all_files(tmp_path)) == 182
