"""Commands as they are on Windows, imitated: no file is removed or replaced while it is open or mapped."""

import mmap
import os
import sys

import numpy as np
import pytest

import segpipe as package
from segpipe.inference.manifest import Manifest
from segpipe.networks.spec import NetworkChoice
from tests.helpers.command_line import segpipe
from tests.phantoms import write_small_dataset

pytestmark = pytest.mark.usefixtures("as_on_windows")
TINY = (
    "name = 'tiny'\ndescription = 'for tests'\n[planner]\nbase_features = 4\nmax_batch = 2\n[training]\noptimizer = 'adamw'\n"
    "learning_rate = 0.01\niterations_per_epoch = 2\nvalidation_batches = 1\n"
)


def test_the_imitation_refuses_what_windows_refuses(tmp_path, as_on_windows):
    file, other = tmp_path / "file", tmp_path / "other"
    np.save(other.with_suffix(".npy"), np.zeros(1000))
    file.write_bytes(b"content")
    with file.open("rb"):
        for act in (file.unlink, lambda: file.rename(other), lambda: other.with_suffix(".npy").replace(file)):
            with pytest.raises(PermissionError, match="has it open"):
                act()
    with file.open("rb") as opened:
        mapped = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
    with pytest.raises(PermissionError):
        file.unlink()
    mapped.close()
    file.unlink()
    assert len(as_on_windows.refused) == 4
    as_on_windows.refused.clear()


def test_a_run_is_made_and_made_again(tmp_path):
    folder = write_small_dataset(tmp_path / "dataset", values=(1, 2))
    (tmp_path / "tiny.toml").write_text(TINY, encoding="utf-8")
    words = (folder, "--recipe", tmp_path / "tiny.toml", "--work", tmp_path / "work", "--device", "cpu", "--jobs", 1)
    assert segpipe("run", *words, "--epochs", 2).returncode == 0
    # Everything is there, and is written a second time.
    for line in (
        ("run", *words, "--epochs", 2, "--resume"),
        ("train", folder, "--work", tmp_path / "work", "--device", "cpu", "--jobs", 1, "--extend", "--epochs", 3),
        ("report", tmp_path / "work"),
    ):
        done = segpipe(*line)
        assert done.returncode == 0, (line, done.stderr)


LONGEST_ROOT = 45
r"""Characters of a workspace's own path: C:\\Users\\name\\project\\runs\\dataset has 34."""
LONGEST_PATH = 259
"""Characters of a path on Windows, unless the machine is set up for longer ones."""


def test_paths_of_a_workspace_stay_short(tmp_path):
    folder, case = write_small_dataset(tmp_path / "dataset", values=(1, 2)), "c" * 59
    for file in [*(folder / "images").iterdir(), *(folder / "labels").iterdir()]:
        file.rename(file.with_name(file.name.replace("case_", case)))
    (tmp_path / "tiny.toml").write_text(TINY, encoding="utf-8")
    work, seen, listening = tmp_path / "work", set(), [True]

    def note(event, args):
        if listening and event in ("open", "os.mkdir", "os.rename"):
            seen.update(os.fsdecode(path) for path in args[:2] if isinstance(path, str | os.PathLike))

    sys.addaudithook(note)
    words = ("--recipe", tmp_path / "tiny.toml", "--work", work, "--device", "cpu", "--jobs", 1, "--epochs", 1)
    assert segpipe("run", folder, *words).returncode in (0, 3)
    listening.clear()
    longest = max((os.path.relpath(path, work) for path in seen if path.startswith(str(work))), key=len)
    assert "partial" in longest, "temporary files count"
    network = NetworkChoice(name="monai:SwinUNETR", options={"depths": [2] * 40}).slug
    more = ("crossval/0/", "residual_xl+", network, "_cascade", "_uncertainty")
    assert len(longest) + sum(map(len, more)) + LONGEST_ROOT <= LONGEST_PATH, longest


def test_predictions_with_all_that_is_saved_beside_them(six_scans, tmp_path, two_fold_model):
    how = {"model": two_fold_model, "tta": False, "device": "cpu", "save_probabilities": True, "save_uncertainty": True}
    out = tmp_path / "out"
    for more in ({}, {"resume": True}, {"step": 0.9}):
        rows = package.predict(six_scans, out, **how, **more)
        assert {row.status for row in rows} == {"done"}
    assert not (out / ".segpipe").exists()


def test_a_claim_that_was_left_is_remembered_although_its_lock_is_released(tmp_path):
    manifest, output = Manifest(tmp_path / "predictions.jsonl"), tmp_path / "a.nii.gz"
    claim = manifest.claim(output, wait=False)
    file = tmp_path / claim.lock_file
    claim.release()
    file.touch()
    for _ in range(2):
        assert manifest.was_killed(output)
    manifest.release(manifest.claim(output, wait=True))
    assert not manifest.is_claimed(output)
