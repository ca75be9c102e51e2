"""Commands as a user types them: exit codes, what is printed, what is written."""

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from segpipe.io.formats import read_volume
from segpipe.version import __version__
from tests.helpers.command_line import segpipe
from tests.phantoms import write_small_dataset

ROOT = Path(__file__).parents[2]
ONE = ("--jobs", "1")
"""Cases are worked on in this process."""


@pytest.fixture(scope="module")
def tiny_recipe(tmp_path_factory):
    path = tmp_path_factory.mktemp("recipe") / "tiny.toml"
    path.write_text(
        "name = 'tiny'\ndescription = 'for tests'\n[planner]\nbase_features = 4\nmax_batch = 2\n[training]\noptimizer = 'adamw'\n"
        "learning_rate = 0.01\niterations_per_epoch = 10\nvalidation_batches = 2\n",
        encoding="utf-8",
    )
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_recipe):
    """A whole run on a dataset with labels 130 and 300 and two faulty cases."""
    folder = write_small_dataset(tmp_path_factory.mktemp("run") / "dataset", n_cases=7, values=(130, 300))
    (folder / "images" / "case_5.nrrd").write_bytes(b"broken")
    (folder / "labels" / "case_6.nii.gz").unlink()
    work, recipe = folder.parent / "work", folder.parent / "tiny.toml"
    # Few long epochs: each ends with a figure.
    recipe.write_text(
        tiny_recipe.read_text(encoding="utf-8").replace("iterations_per_epoch = 10", "iterations_per_epoch = 100"),
        encoding="utf-8",
    )
    result = segpipe("run", *ONE, folder, "--recipe", recipe, "--epochs", 3, "--work", work, "--device", "cpu")
    return folder, work, result


def test_a_run_goes_to_the_end_and_names_what_was_lost(finished):
    _, work, result = finished
    assert result.returncode == 3, result.stderr
    assert "mean of labels" in result.stdout
    assert "cube_130" in result.stdout
    for lost in ("case_5", "case_6"):
        assert lost in result.stdout
    for path in (
        "plan.json",
        "fingerprint.json",
        "splits.json",
        "models/3d_fullres/tiny/model.segpipe",
        "report/index.html",
    ):
        assert (work / path).is_file()
    assert "training fold 0: 100%" in result.stderr
    assert "Traceback" not in result.stderr


def test_labels_130_and_300_come_out(finished):
    _, work, _ = finished
    evaluation = json.loads((work / "evaluation/3d_fullres/tiny/fold_0.json").read_text(encoding="utf-8"))
    assert evaluation["labels"] == {"cube_130": [130], "cube_300": [300]}
    assert evaluation["mean_dice"] > 0.5
    predictions = [
        p for p in (work / "predictions/3d_fullres/tiny/fold_0").iterdir() if p.suffix not in (".jsonl", ".csv")
    ]
    values = set()
    for path in predictions:
        volume = read_volume(path)
        assert volume.array.dtype == np.uint16
        values |= set(np.unique(volume.array).tolist())
    assert values == {0, 130, 300}


def test_the_report_is_one_self_contained_page(finished):
    page = (finished[1] / "report" / "index.html").read_text(encoding="utf-8")
    assert "data:image/png;base64," in page
    assert "http://" not in page
    assert "https://" not in page
    assert "case_5" in page


def test_predict_evaluate_report(finished, tmp_path):
    folder, work, _ = finished
    images = tmp_path / "images"
    shutil.copytree(folder / "images", images)
    result = segpipe(
        "predict",
        *ONE,
        images,
        tmp_path / "out",
        "--model",
        work / "models/3d_fullres/tiny",
        "--no-tta",
        "--device",
        "cpu",
    )
    assert result.returncode == 3
    assert "6 of 7 case(s) predicted" in result.stdout
    assert "case_5" in result.stdout
    image, labels = nib.load(images / "case_0.nii.gz"), nib.load(tmp_path / "out" / "case_0.nii.gz")
    assert image.shape == labels.shape
    np.testing.assert_array_equal(image.affine, labels.affine)

    result = segpipe(
        "evaluate", *ONE, tmp_path / "out", folder / "labels", "--json", "--output", tmp_path / "scores.json"
    )
    assert result.returncode == 3
    scores = json.loads(result.stdout)
    assert set(scores["failed"]) == {"case_5"}
    assert json.loads((tmp_path / "scores.json").read_text(encoding="utf-8")) == scores | {"made_by": __version__}

    result = segpipe("report", work)
    assert (result.returncode, Path(result.stdout.strip())) == (0, work / "report" / "index.html")


def test_check_lists_what_is_wrong(finished, tmp_path):
    result = segpipe("check", *ONE, finished[0], cwd=tmp_path)
    assert result.returncode == 1
    assert "unreadable" in result.stdout
    assert "missing pair" in result.stdout
    sound = write_small_dataset(tmp_path / "sound", n_cases=2)
    result = segpipe("check", *ONE, sound, "--json", cwd=tmp_path)
    assert result.returncode == 0
    assert json.loads(result.stdout)["findings"] == []


def test_a_plan_is_a_page_and_json(tmp_path):
    folder = write_small_dataset(tmp_path / "dataset", n_cases=3)
    result = segpipe("plan", *ONE, folder, cwd=tmp_path)
    assert result.returncode == 0
    for word in ("what was measured", "What was chosen", "because", "memory (GB)", "median spacing"):
        assert word in result.stdout
    assert (tmp_path / "runs" / "dataset" / "plan.json").is_file()
    result = segpipe("plan", *ONE, folder, "--json", "--budget-gb", 4, "--spacing", 2, 2, 2, "--work", tmp_path / "w")
    assert json.loads(result.stdout)["configurations"]["3d_fullres"]["spacing_mm"] == [2, 2, 2]


def test_each_stage_by_itself(tmp_path, tiny_recipe):
    folder, work = write_small_dataset(tmp_path / "dataset"), tmp_path / "work"
    assert segpipe("plan", *ONE, folder, "--recipe", tiny_recipe, "--work", work).returncode == 0
    result = segpipe("preprocess", *ONE, folder, "--work", work, "--quiet")
    assert (result.returncode, result.stderr) == (0, "")
    result = segpipe("train", *ONE, folder, "--work", work, "--epochs", 1, "--device", "cpu")
    assert result.returncode == 0, result.stderr
    assert "iterations in" in result.stdout
    result = segpipe("train", *ONE, folder, "--work", work, "--epochs", 1, "--device", "cpu")
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith("segpipe: ")
    assert "--resume" in result.stderr


def test_another_network_is_listed_trained_and_used(tmp_path, tiny_recipe):
    folder, work = write_small_dataset(tmp_path / "dataset"), tmp_path / "work"
    assert segpipe("plan", *ONE, folder, "--recipe", tiny_recipe, "--work", work, "--quiet").returncode == 0
    listed = segpipe("networks")
    assert listed.returncode == 0
    assert all(name in listed.stdout for name in ("u2net", "danet", "ternausnet", "monai:SwinUNETR", "width=1.0"))
    where = [folder, "--work", work, "--device", "cpu"]
    result = segpipe("networks", *where, "--network", "u2netp:width=0.25", "--network", "plain_unet", "--json")
    costs = json.loads(result.stdout)
    assert [c["network"] for c in costs] == ["u2netp:width=0.25", "plain_unet"]
    assert all(c["step_s"] > 0 and c["memory_gb"] > 0 and not c["problem"] for c in costs)
    shown = segpipe("networks", *where, "--network", "plain_unet", "-c", "2d").stdout
    assert "seconds a step" in shown
    network = ["--network", "monai:SegResNet:init_filters=8,norm=batch"]
    result = segpipe("train", *ONE, *where, "--epochs", 1, "--no-tta", *network)
    assert result.returncode == 0, result.stderr
    # A long list of options is cut in a folder's name, and told apart by a digest.
    (model,) = (work / "models" / "3d_fullres").glob("tiny+monai-SegResNet_init_filters=8_norm=batc_????????")
    assert (model / "model.segpipe").is_file()
    assert segpipe("train", *ONE, *where, "--epochs", 1, "--no-tta", *network).returncode == 1
    assert segpipe("train", *ONE, *where, "--epochs", 1, "--no-tta", *network, "--resume").returncode == 0
    image = next((folder / "images").iterdir())
    assert segpipe("predict", *ONE, image, tmp_path / "out", "-m", model, "--device", "cpu", "--no-tta").returncode == 0
    for wrong, reason in (
        ("u3net", "not known"),
        ("u2net:size=3", "its options are width=1.0"),
        ("u2net:", "expected"),
    ):
        result = segpipe("train", *ONE, *where, "--network", wrong)
        assert (result.returncode, len(result.stderr.splitlines()[-1:])) == (2, 1)
        assert reason in result.stderr.splitlines()[-1]
        assert "Traceback" not in result.stderr
    done = segpipe(
        "run",
        *ONE,
        *where,
        "--recipe",
        tiny_recipe,
        "--epochs",
        1,
        "--no-tta",
        "--network",
        "plain_unet:width=0.5",
        "--json",
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["training"]["variant"] == "tiny+plain_unet_width=0.5"
    assert "tiny+plain_unet_width=0.5" in (work / "report" / "index.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["check", "gone"], 1, "no such folder"),
        (["plan", "."], 1, "layout not recognised"),
        (["plan", ".", "--recipe", "resencm"], 2, "did you mean 'resenc_m'"),
        (["run", ".", "--network", "u2ne"], 2, "did you mean 'u2net'"),
        (["run", ".", "--extend"], 2, "give the new end with --epochs or --minutes"),
        (["run", ".", "--epochs", "1", "--minutes", "1"], 2, "two ends of training"),
        (["distill", ".", "--kd", "voxle"], 2, "did you mean 'voxel'"),
        (["compare", "gone.segpipe", "--dataset", "."], 2, "no such file or folder"),
        (["crossval", ".", "--no-nested", "--no-final"], 2, "nothing would be left to do"),
        (["crossval", ".", "--candidates", "2d+u2ne"], 2, "did you mean 'u2net'"),
        (["crossval", ".", "--folds", "3", "--leave-out", "site"], 2, "leave out --folds"),
        (
            ["predict", ".", "out", "--model", "gone.segpipe", "--device", "cpu"],
            2,
            "no such file or folder; expected a trained model",
        ),
        (["train", ".", "--fold", "x"], 2, "expected a number or 'all'"),
        (["fly"], 2, "No such command"),
        (["run", ".", "--device", "tpu"], 2, "not a device name|expected auto"),
        (["run", ".", "--device", "cuda:99"], 2, "CUDA device"),
    ],
)
def test_wrong_use_is_one_line_and_its_own_code(tmp_path, arguments, code, message):
    import re

    result = segpipe(*arguments, cwd=tmp_path)
    assert result.returncode == code
    assert re.search(message, result.stderr), result.stderr
    assert "Traceback" not in result.stderr


def test_doctor_and_version():
    facts = json.loads(segpipe("doctor", "--json").stdout)
    assert {"trains on", "memory free", "torch"} <= set(facts)
    assert segpipe("--version").stdout.startswith("segpipe ")


def test_the_demo_dataset_is_what_demo_writes(tmp_path):
    assert segpipe("demo", tmp_path / "phantoms").returncode == 0
    written = {p.relative_to(tmp_path / "phantoms") for p in (tmp_path / "phantoms").rglob("*") if p.is_file()}
    committed = {p.relative_to(ROOT / "data/phantoms") for p in (ROOT / "data/phantoms").rglob("*") if p.is_file()}
    assert written == committed
    for path in sorted(written):
        if path.name != "dataset.json":
            ours, theirs = read_volume(tmp_path / "phantoms" / path), read_volume(ROOT / "data/phantoms" / path)
            np.testing.assert_array_equal(ours.array, theirs.array)
            assert ours.grid == theirs.grid
    assert segpipe("demo", tmp_path / "phantoms").returncode == 1


def test_data_readme_lists_every_file_with_its_sha256():
    from hashlib import sha256

    text = (ROOT / "data" / "README.md").read_text(encoding="utf-8")
    for path in (ROOT / "data/phantoms").rglob("*"):
        if path.is_file():
            assert f"{sha256(path.read_bytes()).hexdigest()}  {path.relative_to(ROOT / 'data')}" in text


def test_the_demo_dataset_is_small_and_varied():
    from segpipe.dataset.match import match_dataset
    from segpipe.io.formats import ending_of, read_header

    files = [p for p in (ROOT / "data/phantoms").rglob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in files) < 3_000_000
    dataset = match_dataset(ROOT / "data/phantoms")
    assert len(dataset.labels.values) == 4
    grids = [read_header(c.images[0].path).grid for c in dataset.cases]
    assert {ending_of(c.images[0].path) for c in dataset.cases} == {".nii.gz", ".nrrd"}
    assert any(np.abs(np.array(g.direction)).max() < 0.999 for g in grids)
    assert {"SAR", "SPL"} <= {g.axis_codes for g in grids}
    assert min(g.spacing_mm[0] / g.spacing_mm[1] for g in grids) > 1.3


def test_what_is_the_same_of_many_cases_is_told_once(tmp_path):
    folder = write_small_dataset(tmp_path / "dataset", n_cases=5)
    for path in (folder / "images").glob("*.nii.gz"):
        stored = nib.load(path)
        stored.header.set_xyzt_units("unknown")
        nib.save(stored, path)
    shown = segpipe("check", *ONE, folder, "--work", tmp_path / "work")
    assert shown.returncode == 0
    assert shown.stdout.count("millimetres are assumed") == 1
    assert "3 cases: case_0, case_2, case_4" in shown.stdout
