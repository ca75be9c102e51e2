"""A file whose reading does not end is that file's failure; the others go on."""

import time

import numpy as np
import pytest

import segpipe
from segpipe.io import formats, nifti
from segpipe.io.formats import write_volume
from tests.helpers.batch import drawn
from tests.phantoms import axis_grid


@pytest.fixture
def c_hangs(monkeypatch):
    read = nifti.read

    def read_or_hang(path):
        end = time.monotonic() + 60
        while "c" in path.name.split(".")[0] and time.monotonic() < end:
            time.sleep(0.001)
        return read(path)

    monkeypatch.setattr(nifti, "read", read_or_hang)
    monkeypatch.setattr(formats, "LEAST_LIMIT_S", 1.0)


def test_prediction_goes_on(six_scans, tmp_path, two_fold_model, c_hangs):
    rows = {
        r.case: r for r in segpipe.predict(six_scans, tmp_path / "out", model=two_fold_model, tta=False, device="cpu")
    }
    assert {c: r.status for c, r in rows.items()} == dict.fromkeys("abdef", "done") | {"c": "failed"}
    assert "c.nii.gz: reading took over 1 s" in rows["c"].reason


def test_check_goes_on(tmp_path, c_hangs):
    for case in "abc":
        write_volume(tmp_path / "d/images" / f"{case}.nii.gz", drawn(), axis_grid(drawn().shape))
        write_volume(tmp_path / "d/labels" / f"{case}.nii.gz", (drawn() > 0).astype(np.uint8), axis_grid(drawn().shape))
    result = segpipe.check(tmp_path / "d", work=tmp_path / "w", jobs=1)
    errors = [f for f in result.findings if f.severity == "error"]
    assert {f.case for f in errors} == {"c"}
    assert {f.rule for f in errors} == {"unreadable"}
    assert "reading took over 1 s" in errors[0].message
