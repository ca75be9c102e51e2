"""No command opens a connection: segpipe runs in hospitals' networks, and what it depends on must not report anything either."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.helpers.engine import RECIPE
from tests.phantoms import write_small_dataset

ROOT = Path(__file__).parents[2]
# Python runs this before anything else, in workers too. Connections on this machine are allowed; any other is recorded and refused.
WATCH = """
import os, sys

LOCAL = ("127.", "::1", "localhost", "")

def watch(event, args):
    if event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
        address = args[1]
        host = address[0] if isinstance(address, tuple) else None
    elif event in ("socket.getaddrinfo", "socket.gethostbyname"):
        host = args[0]
    else:
        return
    host = host.decode() if isinstance(host, bytes) else host
    if host is None or host in LOCAL or host.startswith("127."):
        return
    with open(os.environ["CONNECTIONS"], "a") as file:
        file.write(f"{event} {host} by {sys.argv}\\n")
    raise OSError(f"{event} {host}: this test allows no connection")

sys.addaudithook(watch)
"""


@pytest.fixture
def watched(tmp_path):
    """A function that runs Python where connections are recorded, with an empty home; returns what was recorded."""
    (tmp_path / "watch").mkdir()
    (tmp_path / "watch" / "sitecustomize.py").write_text(WATCH, encoding="utf-8")
    home = tmp_path / "home"
    home.mkdir()
    recorded = tmp_path / "connections.txt"
    # Nothing else: where CI is set, OpenVINO reports nothing, and the watch would have nothing to see.
    kept = {
        key: os.environ[key]
        for key in ("PATH", "LANG", "TMPDIR", "LD_LIBRARY_PATH", "VIRTUAL_ENV")
        if key in os.environ
    }
    paths = os.pathsep.join([str(tmp_path / "watch"), str(ROOT)])
    env = kept | {"HOME": str(home), "PYTHONPATH": paths, "CONNECTIONS": str(recorded)}

    def run(*words):
        done = subprocess.run(
            [sys.executable, *map(str, words)], env=env, capture_output=True, text=True, cwd=tmp_path, encoding="utf-8"
        )
        assert done.returncode == 0, done.stderr
        return recorded.read_text(encoding="utf-8") if recorded.exists() else ""

    run.home = home
    return run


@pytest.mark.slow
def test_run_and_predict_open_no_connection(watched, tmp_path):
    dataset = write_small_dataset(tmp_path / "dataset")
    (tmp_path / "tiny.toml").write_text(RECIPE, encoding="utf-8")
    command = "from segpipe.cli.app import main; main()"
    how = ("--work", tmp_path / "work", "--device", "cpu", "--jobs", 2)
    assert watched("-c", command, "run", dataset, "--recipe", tmp_path / "tiny.toml", "--epochs", 1, *how) == ""
    model = tmp_path / "work/models/3d_fullres/tiny"
    assert (
        watched("-c", command, "predict", dataset / "images", tmp_path / "out", "--model", model, "--device", "cpu")
        == ""
    )
    # From Python, where a program has loaded nothing of segpipe before.
    script = f"import segpipe; segpipe.Predictor.load({str(model)!r}); import sys; assert 'openvino' in sys.modules"
    assert watched("-c", script) == ""
    # In a worker process, as loky starts them.
    script = (
        "import sys; from loky import get_reusable_executor; from segpipe import Predictor\n"
        f"load = lambda: bool(Predictor.load({str(model)!r})) and 'openvino' in sys.modules\n"
        "assert get_reusable_executor(max_workers=1).submit(load).result()"
    )
    assert watched("-c", script) == ""
    assert {p.name for p in watched.home.iterdir()} <= {".cache", ".config"}


@pytest.mark.skipif(find_spec("openvino_telemetry") is None, reason="this OpenVINO has no reports to stop")
def test_the_watch_sees_the_report_that_is_stopped(watched):
    """What the test above would see: OpenVINO alone, in the same surroundings."""
    recorded = watched("-c", "import openvino, time; time.sleep(2)")
    assert "socket." in recorded
    assert (watched.home / "intel").is_dir()
