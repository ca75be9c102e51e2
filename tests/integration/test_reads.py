"""What one `segpipe run` reads, and what it writes beside its results."""

import json
import sys
from collections import Counter

import pytest

import segpipe
from tests.phantoms import TINY_RECIPE, write_small_dataset

READS: Counter[str] = Counter()
LISTENING: list[bool] = []


def _count(event, arguments):
    if LISTENING and event == "open" and isinstance(arguments[1], str) and arguments[1].startswith("r"):
        READS[str(arguments[0])] += 1


@pytest.fixture
def reads():
    """Files that are opened for reading in this process, by path."""
    if "tests counts reads" not in sys.__dict__:
        sys.__dict__["tests counts reads"] = True
        sys.addaudithook(_count)
    READS.clear()
    LISTENING.append(True)
    yield READS
    LISTENING.clear()


def test_a_run_reads_each_artefact_once(tmp_path, reads):
    """The second run finds everything there and reads it once. The first one reads nothing that it wrote."""
    folder = write_small_dataset(tmp_path / "d", n_cases=3, shape=(16, 16, 16))
    (tmp_path / "tiny.toml").write_text(TINY_RECIPE, encoding="utf-8")
    asked = {
        "work": tmp_path / "w",
        "epochs": 1,
        "jobs": 1,
        "device": "cpu",
        "tta": False,
        "recipe": tmp_path / "tiny.toml",
    }
    fingerprint, dataset = (str(tmp_path / "w" / name) for name in ("fingerprint.json", "dataset.json"))
    segpipe.run(folder, **asked)
    assert (reads[fingerprint], reads[dataset]) == (0, 0)
    reads.clear()
    done = segpipe.run(folder, resume=True, **asked)
    assert reads[fingerprint] == 1
    assert reads[dataset] <= 2, "whether the files are as before, and what they were"
    told = json.loads((done.model.parent / "fold_0" / "asked.json").read_text(encoding="utf-8"))
    assert told["command"] == "run"
    assert told["options"]["epochs"] == 1
    assert told["options"]["resume"] is False, "as it was asked for at first"
    assert told["options"]["dataset"] == str(folder)
