"""An output belongs to whoever changed it last: what somebody corrected stays, is reported, and costs nobody else."""

import ctypes
import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import segpipe
from segpipe.execution.processes import map_cases
from segpipe.inference.run import _Batch
from segpipe.io.formats import read_volume, write_volume
from segpipe.workflows import predict as workflow
from segpipe.workflows.options import PredictOptions
from tests.helpers.batch import SHAPE
from tests.phantoms import axis_grid

QUICK = {"tta": False, "device": "cpu"}


def corrected(path):
    write_volume(path, np.ones(SHAPE, np.uint8), axis_grid(SHAPE))
    return path.read_bytes()


def statuses(rows):
    return {row.case: row.status for row in rows}


@pytest.mark.parametrize(
    ("again", "change"),
    [
        ({}, corrected),
        ({"resume": True}, corrected),
        ({"step": 0.9}, corrected),
        ({"folds": ("0",)}, lambda path: path.write_bytes(b"cut off") and path.read_bytes()),
        ({}, lambda path: (path.unlink(), path.mkdir(), None)[-1]),
        ({}, lambda path: (path.unlink(), path.symlink_to("elsewhere"), None)[-1]),
    ],
    ids=["plain", "resumed", "other step", "no mask at all", "a folder", "a link"],
)
def test_a_corrected_mask_stays_and_its_case_is_reported(six_scans, tmp_path, two_fold_model, again, change):
    out, how = tmp_path / "out", QUICK | {"model": two_fold_model}
    segpipe.predict(six_scans, out, **how)
    mine = out / "c.nii.gz"
    content = change(mine)
    shutil.copy(six_scans / "a.nii.gz", six_scans / "new.nii.gz")
    for _ in range(2):  # the failed row of the first is no reason to forget whose the mask is
        rows = segpipe.predict(six_scans, out, **how, **again)
        assert statuses(rows) == dict.fromkeys("abdef", "done") | {"new": "done", "c": "failed"}
        (lost,) = [row for row in rows if row.status == "failed"]
        assert "c.nii.gz: was changed after segpipe predict wrote it, and is kept" in lost.reason
        assert "--overwrite" in lost.reason
        if content is None:
            assert mine.is_dir() or mine.is_symlink()
        else:
            assert mine.read_bytes() == content
    assert workflow.page(rows, PredictOptions(source=six_scans, output=out, model=(two_fold_model,))).exit_code == 3


def test_overwrite_replaces_it_and_what_is_put_back_is_known(six_scans, tmp_path, two_fold_model):
    out, how = tmp_path / "out", QUICK | {"model": two_fold_model}
    segpipe.predict(six_scans, out, **how)
    first, voxels = (out / "c.nii.gz").read_bytes(), read_volume(out / "c.nii.gz").array
    corrected(out / "c.nii.gz")
    assert set(statuses(segpipe.predict(six_scans, out, overwrite=True, **how)).values()) == {"done"}
    np.testing.assert_array_equal(read_volume(out / "c.nii.gz").array, voxels)
    # Removed, or put back as it was: nobody's work is lost.
    (out / "c.nii.gz").write_bytes(first)
    (out / "d.nii.gz").unlink()
    assert set(statuses(segpipe.predict(six_scans, out, step=0.9, **how)).values()) == {"done"}


@pytest.mark.parametrize("file", ["c.npz", "c_uncertainty.nii.gz"])
def test_what_lies_beside_a_mask_is_kept_as_well(six_scans, tmp_path, two_fold_model, file):
    out = tmp_path / "out"
    how = QUICK | {"model": two_fold_model, "save_probabilities": True, "save_uncertainty": True}
    segpipe.predict(six_scans, out, **how)
    mask = (out / "c.nii.gz").read_bytes()
    (out / file).write_bytes(b"another program's")
    rows = segpipe.predict(six_scans, out, step=0.9, **how)
    assert [row.case for row in rows if row.status == "failed"] == ["c"]
    assert ((out / file).read_bytes(), (out / "c.nii.gz").read_bytes()) == (b"another program's", mask)
    # Where it is not asked for, it is in nobody's way.
    rows = segpipe.predict(six_scans, out, model=two_fold_model, **QUICK)
    assert {row.status for row in rows} == {"done"}


def test_a_row_of_an_older_version_has_no_digest_of_what_lies_beside(six_scans, tmp_path, two_fold_model):
    out, how = tmp_path / "out", QUICK | {"model": two_fold_model, "save_probabilities": True}
    segpipe.predict(six_scans, out, **how)
    log = out / "predictions.jsonl"
    before = [line for line in log.read_text(encoding="utf-8").splitlines() if '"saved_sha256"' in line]
    assert len(before) == 6
    rows = [
        line.partition(',"saved_sha256":{')[0] + line.partition(',"saved_sha256":{')[2].partition("}")[2]
        for line in before
    ]
    log.write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")
    assert "saved_sha256" not in log.read_text(encoding="utf-8")
    assert {row.status for row in segpipe.predict(six_scans, out, **how)} == {"done"}
    # From then on there is one.
    (out / "c.npz").write_bytes(b"another program's")
    assert [row.case for row in segpipe.predict(six_scans, out, **how) if row.status == "failed"] == ["c"]


def test_what_is_corrected_while_its_case_is_computed_stays(six_scans, tmp_path, two_fold_model, monkeypatch):
    out, how = tmp_path / "out", QUICK | {"model": two_fold_model}
    segpipe.predict(six_scans, out, **how)
    compute, content = _Batch._compute, []

    def meanwhile(self, job):
        compute(self, job)
        if job.case.id == "c":
            content.append(corrected(out / "c.nii.gz"))

    monkeypatch.setattr(_Batch, "_compute", meanwhile)
    rows = segpipe.predict(six_scans, out, **how)
    assert [row.case for row in rows if row.status == "failed"] == ["c"]
    assert (out / "c.nii.gz").read_bytes() == content[0]


@pytest.mark.parametrize("replaced", [False, True], ids=["before it", "after it"])
def test_who_is_killed_when_a_mask_takes_its_place_leaves_nothing_foreign(
    six_scans, tmp_path, two_fold_model, monkeypatch, replaced
):
    """Otherwise the same command would find a mask that looks like somebody else's, and would not replace it."""
    out, how = tmp_path / "out", QUICK | {"model": two_fold_model}
    segpipe.predict(six_scans, out, **how, folds=("1",))
    first = (out / "c.nii.gz").read_bytes()
    replace = Path.replace

    def killed(self, target):
        if replaced or target.name != "c.nii.gz":
            replace(self, target)
        if target.name == "c.nii.gz":
            raise Killed
        return target

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", killed)
        with pytest.raises(Killed):
            segpipe.predict(six_scans, out, **how)
    assert ((out / "c.nii.gz").read_bytes() == first) != replaced
    rows = segpipe.predict(six_scans, out, **how, folds=("1",))
    assert {row.status for row in rows} == {"done"}
    assert [f.name for f in out.iterdir() if f.name.startswith(".")] == []


class Killed(BaseException):
    """No ``except Exception`` sees it, as none sees SIGKILL."""


@pytest.mark.parametrize("damage", ["cut", "nonsense", "nan"])
def test_a_damaged_row_costs_its_own_case(six_scans, tmp_path, two_fold_model, damage):
    """The mask may be anybody's: it stays. The others are sound, and are done."""
    out, how = tmp_path / "out", QUICK | {"model": two_fold_model}
    segpipe.predict(six_scans, out, **how)
    log = out / "predictions.jsonl"
    *kept, last = log.read_text(encoding="utf-8").splitlines()
    spoilt = {"cut": last[:-50], "nonsense": "\0" * 200, "nan": last.replace('"status":"done"', '"status":NaN')}[damage]
    log.write_text("\n".join([*kept, spoilt]) + "\n", encoding="utf-8")
    mine = (out / "f.nii.gz").read_bytes()
    rows = segpipe.predict(six_scans, out, resume=True, **how)
    assert statuses(rows) == dict.fromkeys("abcde", "done") | {"f": "failed"}
    assert "the log does not say who wrote it (1 of its lines are damaged)" in next(r.reason for r in rows if r.reason)
    assert (out / "f.nii.gz").read_bytes() == mine
    assert {row.status for row in segpipe.predict(six_scans, out, overwrite=True, **how)} == {"done"}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems have no such names")
def test_a_name_that_no_output_can_have_costs_its_own_case(six_scans, tmp_path, two_fold_model):
    for name in ("x\ny", "a\tb", "l" * 230):
        shutil.copy(six_scans / "a.nii.gz", six_scans / f"{name}.nii.gz")
    (tmp_path / "cases.csv").write_text('case,image\n"m\tn",in/a.nii.gz\nb,in/b.nii.gz\n', encoding="utf-8")
    rows = segpipe.predict(six_scans, tmp_path / "out", model=two_fold_model, **QUICK)
    assert statuses(rows) == dict.fromkeys("abcdef", "done") | dict.fromkeys(("x\ny", "a\tb", "l" * 230), "failed")
    rows = segpipe.predict(tmp_path / "cases.csv", tmp_path / "out2", model=two_fold_model, **QUICK)
    assert statuses(rows) == {"b": "done", "m\tn": "failed"}


def test_a_converted_volume_that_was_changed_stays(tmp_path):
    from tests.unit.test_dicom import write_series

    write_series(tmp_path / "in" / "p1")
    write_series(tmp_path / "in" / "p2", uid="1.2.3.9")
    out = tmp_path / "out"
    assert [s.reason for s in segpipe.convert(tmp_path / "in", out)] == [None, None]
    (out / ".1.partial.p1.nii.gz").write_bytes(b"of an older version: not judged")
    content = corrected(out / "p1.nii.gz")
    done = {s.series: s.reason for s in segpipe.convert(tmp_path / "in", out)}
    assert "p1.nii.gz: was changed after segpipe convert wrote it, and is kept" in done["p1"]
    assert done["p2"] is None
    assert (out / "p1.nii.gz").read_bytes() == content


def full(_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/disk/mask.nii.gz")


def test_a_full_disk_that_a_worker_meets_ends_the_batch():
    with pytest.raises(OSError, match="No space left") as error:
        list(map_cases(full, ["a", "b"], workers=2, bytes_each=1))
    assert error.value.filename == "/disk/mask.nii.gz"


ON_A_SMALL_DISK = """
import subprocess, sys, os, shutil
from pathlib import Path
disk, images, model = map(Path, sys.argv[1:])
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", disk], check=True)
def predict(*more):
    call = ["predict", images, disk / "out", "--model", model, "--no-tta", "--device", "cpu", "--save-probabilities", *more]
    run = [sys.executable, "-c", "from segpipe.cli.app import main; main()", *map(str, call)]
    ended = subprocess.run(run, capture_output=True, encoding="utf-8")
    return ended.returncode, ended.stdout + ended.stderr
free = os.statvfs(disk)
(disk / "filler").write_bytes(bytes(free.f_bavail * free.f_frsize - 24_000))
code, said = predict()
assert code == 1 and "No space left on device; make room" in said and "Traceback" not in said, (code, said)
(disk / "filler").unlink()
code, said = predict("--resume")
assert code == 0, (code, said)
left = [f.name for f in (disk / "out").iterdir() if f.name.startswith(".")]
assert left == [] and len(list((disk / "out").glob("*.npz"))) == 6, left
print("held")
"""


@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs unshare")
def test_with_room_again_the_advice_works(six_scans, tmp_path, two_fold_model):
    """The room of the probabilities' map is taken before it is written: otherwise the first write into it would kill the process."""
    (tmp_path / "disk").mkdir()
    if subprocess.run(["unshare", "-rm", "true"], check=False).returncode:
        pytest.skip("no mount namespace here")
    script = [sys.executable, "-c", ON_A_SMALL_DISK, tmp_path / "disk", six_scans, two_fold_model]
    ended = subprocess.run(["unshare", "-rm", *map(str, script)], check=False, capture_output=True, encoding="utf-8")
    assert ended.stdout == "held\n", ended.stderr


def test_what_leads_in_a_circle_or_cannot_be_opened_is_named(six_scans, tmp_path, two_fold_model):
    (six_scans / "loop.nii.gz").symlink_to("loop.nii.gz")
    (six_scans / "ward7").mkdir()
    shutil.copy(six_scans / "a.nii.gz", six_scans / "ward7" / "scan.nii.gz")
    (six_scans / "ward7").chmod(0)
    (six_scans / "ward8" / "inner").mkdir(parents=True)
    (six_scans / "ward8" / "inner").chmod(0)
    words = ["predict", six_scans, tmp_path / "out", "--model", two_fold_model, "--no-tta", "--device", "cpu"]
    run = [sys.executable, "-c", "from segpipe.cli.app import main; main()", *map(str, words)]
    ended = subprocess.run(run, capture_output=True, check=False, preexec_fn=as_others, encoding="utf-8")
    for place in (six_scans / "ward7", six_scans / "ward8" / "inner"):
        place.chmod(0o755)
    said = ended.stdout + ended.stderr
    assert (ended.returncode, "Traceback" in said) == (3, False), said
    assert all(name in said for name in ("loop.nii.gz", "ward7", "ward8"))
    assert len(list((tmp_path / "out").glob("?.nii.gz"))) == 6


def as_others():
    """Bind root by a file's mode, as everybody is: without these two capabilities it may not read what it wants."""
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        for capability in (1, 2):
            ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)
