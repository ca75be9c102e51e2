"""No command opens a connection: segpipe runs in hospitals' networks, and what it depends on must not report anything either."""

import os
import socket
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from segpipe.cli.app import app
from tests.dicoms import write_series
from tests.helpers.engine import RECIPE
from tests.helpers.offline.sitecustomize import RECORD
from tests.phantoms import write_small_dataset

ROOT = Path(__file__).parents[2]
OFFLINE = ROOT / "tests" / "helpers" / "offline"
ON = ("dataset", "--work", "work", "--jobs", "2")
SHORT = ("--recipe", "tiny.toml", "--epochs", "1", "--device", "cpu")
MODEL = "whole/models/3d_fullres/tiny"
TRIALS = {
    "doctor": [("doctor",)],
    "demo": [("demo", "phantoms")],
    "convert": [("convert", "dicom", "converted")],
    "check": [("check", *ON)],
    "plan": [("plan", *ON, "--recipe", "tiny.toml")],
    "networks": [("networks",), ("networks", *ON, "--device", "cpu", "--network", "plain_unet")],
    "preprocess": [("preprocess", *ON)],
    "train": [("train", *ON, "--epochs", "1", "--device", "cpu", "--fold", "0", "--no-tta")],
    "run": [("run", "dataset", "--work", "whole", "--jobs", "2", *SHORT)],
    "predict": [
        ("predict", "dataset/images", "out", "--model", MODEL, "--device", "cpu"),
        ("predict", "dataset/images", "out_torch", "--model", MODEL, "--device", "cpu", "--engine", "torch"),
    ],
    "postprocess": [("postprocess", "out", "--references", "dataset/labels", "--rules", "rules.json")],
    "evaluate": [("evaluate", "out", "dataset/labels", "--output", "scores.json")],
    "report": [("report", "whole")],
    "export": [("export", MODEL, "nnunet")],
    "import": [("import", "nnunet", "imported.segpipe")],
    "compare": [("compare", MODEL, "--dataset", *ON, "--device", "cpu", "--no-tta")],
    "distill": [("distill", *ON, "--teacher", MODEL, "--epochs", "1", "--device", "cpu", "--student", "width=0.5", "--no-tta")],
    "crossval": [
        ("crossval", "dataset", "--work", "crossval", "--jobs", "2", *SHORT, "--folds", "2", "--inner-folds", "2", "--no-final",
         "--candidates", "3d_fullres", "--no-tta", "--threads", "1"),
    ],
}  # fmt: skip
"""What is given to each command, in an order in which each finds what it needs."""


@pytest.fixture
def watched(tmp_path):
    """A function that runs Python where connections are recorded, with an empty home; returns what was recorded."""
    home = tmp_path / "home"
    home.mkdir()
    recorded = tmp_path / "connections.txt"
    # Nothing else: where CI is set, OpenVINO reports nothing, and the watch would have nothing to see.
    kept = {
        key: os.environ[key]
        for key in ("PATH", "LANG", "TMPDIR", "LD_LIBRARY_PATH", "VIRTUAL_ENV")
        if key in os.environ
    }
    env = kept | {"HOME": str(home), "PYTHONPATH": os.pathsep.join([str(OFFLINE), str(ROOT)]), RECORD: str(recorded)}

    def run(*words):
        done = subprocess.run(
            [sys.executable, *map(str, words)], env=env, capture_output=True, text=True, cwd=tmp_path, encoding="utf-8"
        )
        assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
        return recorded.read_text(encoding="utf-8") if recorded.exists() else ""

    run.home = home
    return run


def test_every_command_has_a_trial():
    assert TRIALS.keys() == {command.name for command in app.registered_commands}


@pytest.mark.slow
def test_no_command_opens_a_connection(watched, tmp_path):
    write_small_dataset(tmp_path / "dataset", n_cases=8)
    write_series(tmp_path / "dicom")
    (tmp_path / "tiny.toml").write_text(RECIPE, encoding="utf-8")
    for given in (words for trials in TRIALS.values() for words in trials):
        assert watched("-c", "from segpipe.cli.app import main; main()", *given) == "", given
    assert {p.name for p in watched.home.iterdir()} <= {".cache", ".config"}


@pytest.mark.slow
def test_python_and_workers_open_no_connection(watched, random_model):
    # From Python, where a program has loaded nothing of segpipe before.
    script = (
        f"import segpipe; segpipe.Predictor.load({str(random_model)!r}); import sys; assert 'openvino' in sys.modules"
    )
    assert watched("-c", script) == ""
    # In a worker process, as loky starts them.
    script = (
        "import sys; from loky import get_reusable_executor; from segpipe import Predictor\n"
        f"load = lambda: bool(Predictor.load({str(random_model)!r})) and 'openvino' in sys.modules\n"
        "assert get_reusable_executor(max_workers=1).submit(load).result()"
    )
    assert watched("-c", script) == ""
    assert {p.name for p in watched.home.iterdir()} <= {".cache", ".config"}


@pytest.mark.skipif(find_spec("openvino_telemetry") is None, reason="this OpenVINO has no reports to stop")
def test_the_watch_sees_the_report_that_is_stopped(watched):
    """What the tests above would see: OpenVINO alone, in the same surroundings."""
    recorded = watched("-c", "import openvino, time; time.sleep(2)")
    assert "socket." in recorded
    assert (watched.home / "intel").is_dir()


ATTEMPTS = {
    "connect": "with socket.socket() as s: s.connect(('192.0.2.1', 80))",
    "connect_ex": "with socket.socket() as s: s.connect_ex(('192.0.2.1', 80))",
    "create_connection": "socket.create_connection(('192.0.2.1', 80))",
    "IPv6": "with socket.socket(socket.AF_INET6) as s: s.connect(('2001:db8::1', 80))",
    "sendto": "with socket.socket(type=socket.SOCK_DGRAM) as s: s.sendto(b'a', ('192.0.2.1', 80))",
    "sendmsg": "with socket.socket(type=socket.SOCK_DGRAM) as s: s.sendmsg([b'a'], [], 0, ('192.0.2.1', 80))",
    "getaddrinfo": "socket.getaddrinfo('example.invalid', 80)",
    "gethostbyname": "socket.gethostbyname('example.invalid')",
    "urllib": "__import__('urllib.request').request.urlopen('http://192.0.2.1')",
}


@pytest.mark.parametrize("how", ATTEMPTS)
def test_this_suite_connects_to_no_other_machine(monkeypatch, tmp_path, how):
    """In its own process, and in those that its tests start; also where nobody notices the exception."""
    record = tmp_path / "attempts.txt"
    monkeypatch.setenv(RECORD, str(record))
    with pytest.raises(OSError, match="the tests allow no connection beyond this machine"):
        exec(ATTEMPTS[how], {"socket": socket})
    code = f"import socket\n{ATTEMPTS[how]}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False, encoding="utf-8")
    assert "the tests allow no connection beyond this machine" in done.stderr
    assert len(record.read_text(encoding="utf-8").splitlines()) == 2


def test_connections_within_this_machine_are_allowed(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()):
        pass
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(("localhost", server.getsockname()[1])),
    ):
        pass
    place = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind(place)
        server.listen()
        client.connect(place)
