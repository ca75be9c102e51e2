"""Cross-validation from end to end: nothing leaks, nothing is lost, and a cluster gives what this machine gives."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import psutil
import pytest

import segpipe
from segpipe.core.workspace import Workspace
from segpipe.crossvalidation.folder import CrossvalFolder
from segpipe.crossvalidation.schema import CrossvalSplits, Proposal, Selection
from segpipe.dataset.fingerprint.schema import Fingerprint
from segpipe.errors import CrossvalError
from segpipe.execution.graph import Journal
from segpipe.io.formats import read_volume, write_volume
from segpipe.planning.schema import Plan
from segpipe.workflows.arrays import prepare_arrays
from segpipe.workflows.project import Project
from tests.dask_cluster import dask_cluster
from tests.phantoms import write_small_dataset

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.e2e, pytest.mark.slow]

RECIPE = """
name = "tiny"
description = "for tests"
[planner]
base_features = 4
max_batch = 2
budget_gb = 1.0
[training]
iterations_per_epoch = 3
validation_batches = 1
checkpoint_minutes = 0.0001
"""
CANDIDATES = ("3d_fullres", "2d@learning_rate=0.02")
DESIGN = {
    "folds": 2,
    "inner_folds": 2,
    "group_by": "patient",
    "epochs": 2,
    "tta": False,
    "device": "cpu",
    "threads": 1,
    "jobs": 2,
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Eight scans of four patients, and a recipe that trains for seconds."""
    folder = tmp_path_factory.mktemp("crossval")
    dataset = write_small_dataset(folder / "dataset", n_cases=8, shape=(16, 16, 16))
    rows = "".join(f"case_{n},p{n // 2},site{n // 4}\n" for n in range(8))
    (dataset / "cases.csv").write_text("case,patient,site\n" + rows, encoding="utf-8")
    (folder / "tiny.toml").write_text(RECIPE, encoding="utf-8")
    return folder


def crossval(place, name, dataset="dataset", candidates=CANDIDATES, **more):
    return segpipe.crossval(
        place / dataset, work=place / name, recipe=place / "tiny.toml", candidates=candidates, **DESIGN | more
    )


def outputs(folder: CrossvalFolder, study: str = "") -> dict[str, str]:
    """What each job came to, by its own record."""
    found = {}
    for record in sorted(folder.root.glob("*/jobs/*/done.json")):
        name = f"{record.parts[-4]}/{record.parts[-2]}"
        if name.startswith(study):
            found[name] = json.loads(record.read_text(encoding="utf-8"))["output"]
    return found


@pytest.fixture(scope="module")
def whole(place):
    return crossval(place, "whole", final=False)


def test_every_patient_is_predicted_once_and_all_is_told(whole, place):
    folder, result = whole.folder, whole.result
    assert not whole.failed
    assert (result.n_cases, result.n_patients) == (8, 4)
    assert {s.state for s in whole.standings.values()} == {"done"}
    splits = CrossvalSplits.read(folder.splits)
    assert Counter(case for fold in splits.outer for case in fold.test) == Counter(f"case_{n}" for n in range(8))
    with folder.table.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert Counter((row["case"], row["label"]) for row in rows).most_common(1)[0][1] == 1
    assert len(rows) == 16
    assert {(row["case"], row["patient"]) for row in rows} == {(f"case_{n}", f"p{n // 2}") for n in range(8)}
    assert all(0 <= float(row["ece"]) <= 1 for row in rows)
    for fold in splits.outer:
        held = Fingerprint.read(folder.study(fold.name).workspace.fingerprint)
        assert {case.case for case in held.cases} == set(fold.train)
    assert set(result.candidates) == set(CANDIDATES)
    assert [(t.first, t.second, t.n_patients) for t in result.tests] == [(*CANDIDATES, 4)]
    assert set(result.chosen) == {"fold_0", "fold_1"}
    methods, page = folder.methods.read_text(encoding="utf-8"), folder.page.read_text(encoding="utf-8")
    assert "8 scans of 4 patients" in methods
    assert "In all 8 networks were trained" in methods
    assert "data:image/png" in page
    listed = json.loads(folder.nnunet_splits.read_text(encoding="utf-8"))
    assert [fold["val"] for fold in listed] == [list(fold.test) for fold in splits.outer]


def test_the_same_command_again_does_nothing_and_another_design_is_refused(whole, place):
    journal = whole.folder.journal.read_bytes()
    again = crossval(place, "whole", final=False)
    assert whole.folder.journal.read_bytes() == journal
    assert again.result == whole.result
    with pytest.raises(CrossvalError, match=r"other settings \(epochs changed"):
        crossval(place, "whole", epochs=3, final=False)
    with pytest.raises(CrossvalError, match=r"seed"):
        crossval(place, "whole", seed=1, final=False)


def poisoned(place: Path, cases) -> Path:
    """The dataset with other labels and other intensities in some cases."""
    target = place / "poisoned"
    shutil.copytree(place / "dataset", target)
    for case in cases:
        for kind in ("images", "labels"):
            path = next((target / kind).glob(f"{case}.*"))
            volume = read_volume(path)
            array = volume.array[0]
            changed = np.array([0, 2, 1], dtype=array.dtype)[array[::-1]] if kind == "labels" else array * 50 + 1000
            path.unlink()
            write_volume(path, changed.astype(array.dtype), volume.grid)
    return target


def test_poisoned_test_cases_change_nothing_before_they_are_predicted(whole, place):
    fold = CrossvalSplits.read(whole.folder.splits).study("fold_0")
    poisoned(place, fold.test)
    other = crossval(place, "with poison", "poisoned", final=False)
    first, second = (f.study("fold_0") for f in (whole.folder, other.folder))
    for name in (
        "fingerprint.json",
        "plan.json",
        "splits.json",
        "selection.json",
        "model.segpipe",
        "candidates/0.json",
        "candidates/1.json",
    ):
        assert (first.root / name).read_bytes() == (second.root / name).read_bytes(), name
    for study in (first, second):
        assert not study.workspace.arrays.exists(), "what no training needs any more does not fill the disk"
        for configuration in ("2d", "3d_fullres"):
            prepare_arrays(
                Project(study.workspace.root, study.workspace, workers=1),
                Plan.read(study.workspace.plan),
                configuration,
            )
    arrays = sorted(p.relative_to(first.root) for p in first.root.glob("preprocessed/**/*.b2nd"))
    weights = sorted(p.relative_to(first.root) for p in first.root.glob("models/**/weights.safetensors"))
    scores = sorted(p.relative_to(first.root) for p in first.root.glob("evaluation/**/*.json"))
    assert (len(weights), len(scores)) == (4, 4)
    assert arrays
    for path in (*arrays, *weights, *scores):
        assert (first.root / path).read_bytes() == (second.root / path).read_bytes(), path
    before, after = outputs(whole.folder, "fold_0"), outputs(other.folder, "fold_0")
    differing = {job for job in before if before[job] != after[job]}
    assert differing == {"fold_0/test", "fold_0/test_candidate_0", "fold_0/test_candidate_1"}
    # The other fold trained on what was poisoned, and shows it.
    assert (whole.folder.study("fold_1").root / "plan.json").read_bytes() != (
        other.folder.study("fold_1").root / "plan.json"
    ).read_bytes()


def test_a_training_that_is_lost_later_is_done_again_without_the_arrays(whole, place):
    shutil.copytree(place / "whole", place / "again")
    folder = CrossvalFolder(Workspace(place / "again"))
    study = folder.study("fold_1")
    shutil.rmtree(study.workspace.arrays, ignore_errors=True)
    shutil.rmtree(study.job("train_0_fold_0"))
    shutil.rmtree(study.job("train_0_fold_1"))
    shutil.rmtree(study.root / "models")
    assert outputs(folder) != outputs(whole.folder)
    done = crossval(place, "again", final=False)
    assert not done.failed
    assert_the_same(whole, folder)


def test_without_nesting_the_leak_is_in_the_artefacts(whole, place):
    """The same poison, in cases that a fold holds out: it reaches the plan, and through it every network."""
    if not (place / "poisoned").is_dir():
        poisoned(place, CrossvalSplits.read(whole.folder.splits).study("fold_0").test)
    runs = [
        crossval(place, f"flat {name}", name, ("3d_fullres",), nested=False, inner_folds=None)
        for name in ("dataset", "poisoned")
    ]
    assert not runs[0].result.nested
    assert "optimistic" in runs[0].folder.methods.read_text(encoding="utf-8")
    studies = [run.folder.study("final") for run in runs]
    held_out = CrossvalSplits.read(runs[0].folder.splits).final.inner[0].validation
    measured = Fingerprint.read(studies[0].workspace.fingerprint)
    assert set(held_out) <= {case.case for case in measured.cases}
    plans = [Plan.read(study.workspace.plan) for study in studies]
    assert plans[0].intensities != plans[1].intensities
    assert plans[0].digest() != plans[1].digest()
    assert studies[0].selection.read_bytes() != studies[1].selection.read_bytes()
    # The model of all cases is there, with the command that predicts with it.
    assert f"--model {runs[0].model}" in runs[0].folder.page.read_text(encoding="utf-8")
    rows = segpipe.predict(
        place / "dataset" / "images", place / "predicted", model=runs[0].model, tta=False, device="cpu"
    )
    assert {row.status for row in rows} == {"done"}


def command(place: Path, name: str, *more: str) -> list[str]:
    line = [
        sys.executable,
        ROOT / "cli.py",
        "crossval",
        place / "dataset",
        "--work",
        place / name,
        "--recipe",
        place / "tiny.toml",
    ]
    line += [
        "--folds",
        "2",
        "--inner-folds",
        "2",
        "--group-by",
        "patient",
        "--epochs",
        "2",
        "--no-tta",
        "--device",
        "cpu",
    ]
    return [
        str(word)
        for word in [*line, "--candidates", ",".join(CANDIDATES), "--threads", "1", "--no-final", "--quiet", *more]
    ]


def test_killed_three_times_it_ends_with_the_same_result(whole, place):
    folder = CrossvalFolder(Workspace(place / "killed"))
    for n_done in (3, 9, 18):
        process = subprocess.Popen(command(place, "killed", "--jobs", "2"), stderr=subprocess.PIPE)
        while process.poll() is None and len(outputs(folder)) < n_done:
            time.sleep(0.05)
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGKILL)
        assert psutil.wait_procs(children, timeout=20)[1] == [], "workers end with the one that gave them jobs"
        process.communicate(timeout=30)
        standing = segpipe.crossval_status(place / "killed")
        states = Counter(s.state for s in standing.standings.values())
        assert states["running"] == 0
        assert states["waiting"] > 0
    done = outputs(folder)
    last = subprocess.run(
        command(place, "killed", "--jobs", "2"), capture_output=True, text=True, check=False, encoding="utf-8"
    )
    assert last.returncode == 0, last.stderr
    assert done.items() <= outputs(folder).items()
    assert_the_same(whole, folder)
    finished = Counter(
        event["job"]
        for line in folder.journal.read_text(encoding="utf-8").splitlines()
        if (event := json.loads(line))["state"] == "done"
    )
    assert max(finished.values()) == 1


def assert_the_same(whole, folder: CrossvalFolder) -> None:
    assert outputs(folder) == outputs(whole.folder)
    assert folder.table.read_bytes() == whole.folder.table.read_bytes()
    assert folder.result.read_bytes() == whole.folder.result.read_bytes()


def test_stopped_by_a_signal_it_says_so_and_goes_on(place):
    process = subprocess.Popen(command(place, "stopped"), stderr=subprocess.PIPE, text=True, encoding="utf-8")
    folder = CrossvalFolder(Workspace(place / "stopped"))
    while process.poll() is None and len(outputs(folder)) < 3:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    told = process.communicate(timeout=60)[1]
    assert process.returncode == 143
    assert "the same command continues" in told
    status = subprocess.run(
        command(place, "stopped", "--status", "--json"), capture_output=True, text=True, check=True, encoding="utf-8"
    )
    studies = json.loads(status.stdout)["studies"]
    assert studies["fold_0"]["done"] >= 1
    assert studies["fold_1"]["waiting"] >= 1


def test_on_a_cluster_with_a_killed_worker_the_result_is_the_same(whole, place, tmp_path):
    """Nothing lost, nothing done twice: the job whose worker is killed is taken up by another one."""
    folder = CrossvalFolder(Workspace(place / "cluster"))
    victims: list[int] = []

    def kill_one(cluster) -> None:
        while not victims:
            for begun in folder.root.glob("*/jobs/train_*/begun"):
                log = list(begun.parents[2].glob("models/*/*/*/checkpoint.pt"))
                holder = begun.with_name(".lock.holder")
                if log and holder.is_file() and not begun.with_name("done.json").is_file():
                    pid = int(holder.read_text(encoding="utf-8").split()[1])
                    if any(worker.pid == pid for worker in cluster.workers):
                        os.kill(pid, signal.SIGKILL)
                        victims.append(pid)
                        cluster.add_worker()
                        return
            time.sleep(0.01)

    with dask_cluster(tmp_path, 2) as cluster:
        killer = threading.Thread(target=kill_one, args=(cluster,), daemon=True)
        killer.start()
        done = crossval(place, "cluster", cluster=cluster.address, final=False)
    assert victims
    assert not done.failed
    events = [json.loads(line) for line in folder.journal.read_text(encoding="utf-8").splitlines()]
    ended = Counter(event["job"] for event in events if event["state"] in ("done", "failed"))
    assert set(ended.values()) == {1}, "no job ended twice"
    assert_the_same(whole, folder)
    standing = Journal(folder.journal).read()
    assert {s.state for s in standing.values()} == {"done"}


def test_a_pattern_is_shown_and_has_to_be_confirmed(place):
    # Without the table that knows the patients, by which these groups would be refused.
    shutil.copytree(place / "dataset", place / "plain", ignore=shutil.ignore_patterns("cases.csv"))
    plain = {str(place / "dataset"): str(place / "plain")}
    line = [plain.get(word, word) for word in command(place, "pattern", "--group-by", r"_(\d)")]
    shown = subprocess.run(
        line, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, encoding="utf-8"
    )
    assert shown.returncode == 1
    assert "case_5" in shown.stderr, "groups are shown with their cases"
    assert "2 more" in shown.stderr
    assert "confirm them with --yes" in shown.stderr
    assert not (place / "pattern" / "crossval" / "design.json").exists()
    nothing = subprocess.run([*line, "--status"], capture_output=True, text=True, check=False, encoding="utf-8")
    assert "holds no cross-validation; begin one" in nothing.stderr


def test_a_fold_that_fails_does_not_stop_the_others(place):
    """One candidate asks for more than its network can do; the others are compared, and it is told why not this one."""
    done = crossval(place, "failing", candidates=("3d_fullres", "3d_lowres"), final=False)
    assert any("3d_lowres" in reason for reason in done.failed.values())
    assert done.result.n_cases == 8
    assert set(done.result.chosen.values()) == {("3d_fullres",)}
    assert all("3d_lowres" in selection.left_out for selection in selections(done.folder))
    again = crossval(place, "failing", candidates=("3d_fullres", "3d_lowres"), final=False)
    assert again.failed == done.failed


def selections(folder: CrossvalFolder) -> list[Selection]:
    return [Selection.read(path) for path in sorted(folder.root.glob("*/selection.json"))]


def test_repeats_count_each_patient_once(place):
    done = crossval(place, "repeats", candidates=("3d_fullres",), repeats=2, final=False)
    assert (done.result.n_repeats, done.result.n_patients, len(done.result.lost)) == (2, 4, 0)
    with done.folder.table.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert Counter((row["repeat"], row["case"]) for row in rows) == {
        (r, f"case_{n}"): 2 for r in "01" for n in range(8)
    }
    assert done.result.calibration["cube_1"].n_cases == 16
    spread = done.result.scores["cube_1"]["dice"]
    assert (spread.n_patients, len(spread.fold_means)) == (4, 4)
    assert "repeated 2 times" in done.folder.methods.read_text(encoding="utf-8")


def test_refitted_and_searched(place):
    (place / "space.toml").write_text(
        # 3d_lowres is not planned for images this small: its trials fail, and the search goes on.
        'configuration = ["2d", "3d_lowres", "3d_fullres"]\n[training]\nlearning_rate = {low = 0.001, high = 0.1, log = true}\n'
        "foreground_share = [0.33, 0.66]\n",
        encoding="utf-8",
    )
    space = str(place / "space.toml")
    done = crossval(place, "searched", candidates=space, trials=4, refit=True, final=False, ensembles=False)
    assert done.result.n_cases == 8
    study = done.folder.study("fold_0")
    tried = [Proposal.read(study.proposal(n)).candidate for n in range(4)]
    assert len({c.text for c in tried}) == 4
    assert all(0.001 <= c.settings["learning_rate"] <= 0.1 for c in tried)
    assert any(c.configuration == "3d_lowres" for c in tried), "the failing kind was proposed; else this shows nothing"
    assert done.failed
    assert all("3d_lowres" in why or "candidate_" in why for why in done.failed.values())
    from segpipe.models.file import ModelFile

    assert list(ModelFile.read(study.model).folds) == ["all"]
    assert "Optuna" in done.folder.methods.read_text(encoding="utf-8")


def test_preprocessing_prediction_and_distillation_on_a_cluster(whole, place, tmp_path):
    model = whole.folder.study("fold_0").model
    with dask_cluster(tmp_path, 0) as cluster:
        # As users start them: under a nanny, which does not let a worker have processes of its own.
        for _ in range(2):
            cluster.add_worker("--nthreads", "1", "--memory-limit", "0")
        cluster.wait_for(2)
        segpipe.plan(place / "dataset", work=tmp_path / "here", recipe=place / "tiny.toml", jobs=1)
        shutil.copytree(tmp_path / "here", tmp_path / "there")
        here = segpipe.preprocess(place / "dataset", work=tmp_path / "here", jobs=1)
        there = segpipe.preprocess(place / "dataset", work=tmp_path / "there", cluster=cluster.address)
        assert there == here
        images = place / "dataset" / "images"
        # In float16, OpenVINO's choice on some processors, another number of threads moves a voxel here and there.
        how = {"model": model, "tta": False, "device": "cpu", "precision": "float32"}
        rows = segpipe.predict(images, tmp_path / "out", cluster=cluster.address, **how)
        assert len(rows) == 8
        assert {row.status for row in rows} == {"done"}
        local = segpipe.predict(images, tmp_path / "local", **how)
        for row, other in zip(rows, local, strict=True):
            masks = [read_volume(path).array for path in (row.output, other.output)]
            assert (masks[0] != masks[1]).mean() < 1e-3
            assert row.volumes_ml == pytest.approx(other.volumes_ml, rel=0.01)
        again = segpipe.predict(images, tmp_path / "out", cluster=cluster.address, **how)
        assert all(a != b for a, b in zip(again, rows, strict=True)), "without --resume all are predicted again"
        kept = segpipe.predict(images, tmp_path / "out", cluster=cluster.address, resume=True, **how)
        assert kept == again
        teacher = segpipe.train(
            place / "dataset", work=tmp_path / "there", epochs=1, device="cpu", jobs=1, tta=False
        ).model
        done = segpipe.distill(
            os.path.relpath(place / "dataset"), work=os.path.relpath(tmp_path / "there"), teacher=os.path.relpath(teacher),
            student="width=0.5,multiple=1", epochs=1, device="cpu", tta=False, cluster=cluster.address,
        )  # fmt: skip
        assert done.comparison is not None
        assert done.students[-1].model.is_file()
