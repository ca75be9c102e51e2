"""A folder of images: what is done, by whom, what is left behind, and what is said of each."""

import subprocess
import sys
import time

import pytest

import segpipe
from segpipe.execution import limits
from segpipe.execution.processes import map_cases
from segpipe.inference.engines.choose import has_openvino
from tests.helpers.batch import rows_of


def test_a_claim_of_a_process_that_died_is_free(six_scans, tmp_path, two_fold_model):
    out = tmp_path / "out"
    code = f"""
from pathlib import Path
import os, signal
from segpipe.inference.manifest import Manifest
held = Manifest(Path({str(out)!r}) / "predictions.jsonl").claim(Path("a.nii.gz"), wait=False)
Path({str(out)!r}, ".9.partial.a.nii.gz").write_bytes(b"half")
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    rows = segpipe.predict(six_scans, out, model=two_fold_model, tta=False, device="cpu", resume=True)
    assert [r.status for r in rows] == ["done"] * 6
    assert sorted(p.name for p in out.iterdir()) == [
        *(f"{c}.nii.gz" for c in "abcdef"),
        "predictions.csv",
        "predictions.jsonl",
    ]


@pytest.mark.skipif(not has_openvino(), reason="OpenVINO is not installed")
def test_a_signal_after_models_came_and_went_is_handled(two_fold_model):
    """OpenVINO lends the thread a stack for signals; it must not be taken back while it is in use."""
    code = f"""
import os, signal
from segpipe.inference.predictor import Predictor, PredictorOptions
from segpipe.execution.device import choose_runtime

def load():
    return Predictor.load({str(two_fold_model)!r}, choose_runtime("cpu"), PredictorOptions(engine="openvino", tta=False))

first, second = load(), load()
del first
del second
signal.signal(signal.SIGTERM, lambda *_: print("handled"))
os.kill(os.getpid(), signal.SIGTERM)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, encoding="utf-8")
    assert (done.returncode, done.stdout) == (0, "handled\n"), done.stderr


def read_or_hang(case):
    """Sleeping is no step in Python: only the end of the process stops it."""
    limits._GRACE_S = 0.3
    with limits.time_limit(0.2, lambda: ValueError("never raised")):
        time.sleep(60 if case == "hangs" else 0)
    return case


@pytest.mark.slow
def test_a_library_that_hangs_costs_its_own_case():
    cases = ["a", "hangs", "b", "c"]
    start = time.monotonic()
    outcomes = {o.item: o for o in map_cases(read_or_hang, cases, workers=2, bytes_each=1)}
    assert time.monotonic() - start < 40
    assert {c: outcomes[c].value for c in "abc"} == {c: c for c in "abc"}
    assert "a file that took too long to read, most likely" in outcomes["hangs"].failure


def test_a_case_that_kills_its_process_costs_itself_alone(tmp_path, two_fold_model, six_scans):
    """The process is killed while it works on a case; the next run does the others, and the case in a process of its own."""
    program = """
import os, sys
from pathlib import Path
import segpipe.inference.run as run
import segpipe

whole = run._Batch._compute
def compute(self, job):
    if job.case.id == "b" and {deadly}:
        os.kill(os.getpid(), 9)
    whole(self, job)
run._Batch._compute = compute
segpipe.predict(Path({folder!r}), Path({out!r}), model=Path({model!r}), tta=False, device="cpu", resume={resume})
"""
    out = tmp_path / "out"
    known = {"folder": str(six_scans), "out": str(out), "model": str(two_fold_model)}

    def ended(*, deadly, resume):
        code = program.format(**known, deadly=deadly, resume=resume)
        return subprocess.run([sys.executable, "-c", code], check=False, capture_output=True).returncode

    assert ended(deadly=True, resume=False) == -9
    assert ended(deadly=False, resume=True) == 0
    rows = {row["case"]: row for row in rows_of(out)}
    assert {row["status"] for row in rows.values()} == {"done"}
    assert len(rows) == 6
    assert not (out / ".segpipe").exists()


def test_a_thread_that_is_traced_goes_on_after_the_limit():
    """As under a debugger, or where coverage is measured."""
    program = (
        "import sys\n"
        "from segpipe.execution.limits import time_limit\n"
        "sys.settrace(lambda *_: None)\n"
        "for _ in range(20):\n"
        "    with time_limit(60, lambda: ValueError()):\n"
        "        pass\n"
        "print('done')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False, encoding="utf-8"
    )
    assert done.stdout == "done\n"
