"""Where results go and whose they are is known before the work begins: one line, and nothing is written."""

import hashlib
import shutil

import pytest

from segpipe.core.workspace import Workspace
from segpipe.evaluation.schema import Evaluation
from segpipe.planning.schema import Plan
from tests.helpers.command_line import segpipe
from tests.helpers.nnunet_models import model_of
from tests.phantoms import write_small_dataset


@pytest.fixture
def place(planned, tmp_path):
    """A planned dataset, its workspace, and a model of its plan with random weights."""
    folder, work = planned
    model = tmp_path / "model.segpipe"
    model_of(Plan.read(Workspace(work).plan)).write(model)
    return folder, work, model


ON_A_DATASET = {
    "check": ["check", "{data}", "--work", "{work}"],
    "plan": ["plan", "{data}", "--work", "{work}"],
    "preprocess": ["preprocess", "{data}", "--work", "{work}"],
    "train": ["train", "{data}", "--work", "{work}", "--device", "cpu"],
    "run": ["run", "{data}", "--work", "{work}", "--device", "cpu"],
    "crossval": ["crossval", "{data}", "--work", "{work}", "--device", "cpu"],
    "distill": ["distill", "{data}", "--work", "{work}", "--teacher", "{model}", "--device", "cpu"],
    "compare": ["compare", "{model}", "--dataset", "{data}", "--work", "{work}", "--device", "cpu"],
    "networks": ["networks", "{data}", "--work", "{work}", "--device", "cpu"],
}
OTHERS = {
    "predict": ["predict", "{data}/images", "{work}", "--model", "{model}", "--device", "cpu"],
    "predict one": ["predict", "{image}", "{work}/one.nii.gz", "--model", "{model}", "--device", "cpu"],
    "evaluate": ["evaluate", "{data}/labels", "{data}/labels", "--output", "{work}/scores.json"],
    "convert": ["convert", "{data}", "{work}"],
    "export": ["export", "{model}", "{work}"],
    "import": ["import", "{data}", "{work}/m.segpipe"],
    "demo": ["demo", "{work}"],
    "postprocess": ["postprocess", "{data}/labels", "{work}", "--model", "{model}"],
    "rules": ["postprocess", "{data}/labels", "--references", "{data}/labels", "--rules", "{work}/rules.json"],
}  # fmt: skip


def content(folder):
    return {p: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.rglob("*") if p.is_file()}


def filled(words, folder, work, model):
    image = next((folder / "images").iterdir())
    return [word.format(data=folder, work=work, model=model, image=image) for word in words]


@pytest.mark.parametrize("words", ON_A_DATASET.values(), ids=ON_A_DATASET)
def test_another_dataset_is_refused_before_anything_is_written(place, tmp_path, words):
    folder, work, model = place
    other = write_small_dataset(tmp_path / "brain" / "dataset", n_cases=4, shape=(16, 16, 20))
    before = content(work)
    ended = segpipe(*filled(words, other, work, model))
    assert ended.returncode == 1
    (line,) = ended.stderr.splitlines()
    assert str(folder) in line
    assert str(other) in line
    assert content(work) == before


@pytest.mark.parametrize("words", (ON_A_DATASET | OTHERS).values(), ids=ON_A_DATASET | OTHERS)
def test_a_place_that_cannot_be_written_is_one_line(place, tmp_path, words):
    folder, _, model = place
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    ended = segpipe(*filled(words, folder, tmp_path / "file" / "below", model))
    assert ended.returncode == 1
    (line,) = ended.stderr.splitlines()
    assert "cannot be written" in line
    assert "Not a directory" in line


def test_a_report_that_cannot_be_written_is_one_line(trained, monkeypatch):
    def refuse(*_, **__):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("tempfile.mkstemp", refuse)
    ended = segpipe("report", trained[1])
    assert ended.returncode == 1
    assert "cannot be written" in ended.stderr
    assert "Read-only file system; give another place" in ended.stderr


def test_scores_that_cannot_be_written_are_shown(place, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(122, "Disk quota exceeded")

    monkeypatch.setattr(Evaluation, "write", refuse)
    labels = place[0] / "labels"
    ended = segpipe("evaluate", labels, labels, "--output", tmp_path / "scores.json", "--jobs", 1)
    assert ended.returncode == 1
    assert "Scores of 6 case(s)" in ended.stdout
    assert ended.stderr.splitlines()[-1].endswith(
        "cannot be written: Disk quota exceeded; give another place, or make room"
    )


def test_a_dataset_whose_folder_was_renamed_goes_on(trained, tmp_path):
    folder, work = trained
    moved = shutil.copytree(folder, tmp_path / "elsewhere" / "renamed")
    (moved / "dataset.json").write_text(
        (moved / "dataset.json").read_text(encoding="utf-8").replace('"name": "dataset", ', ""), encoding="utf-8"
    )
    for _ in range(2):
        ended = segpipe("train", moved, "--work", work, "--device", "cpu", "--resume", "--no-tta", "--jobs", 1)
        assert ended.returncode == 0, ended.stderr
    assert "was at" not in ended.stderr


WRONG = {
    "fold": (["--fold", "5"], "--fold 5: expected 0 to 4"),
    "configuration": (["--configuration", "3d_ful_res"], "did you mean '3d_fullres'"),
    "network": (["--network", "u2ne"], "did you mean 'u2net'"),
    "device": (["--device", "cuba"], "did you mean 'cuda'"),
    "model": (["--init-from", "{model}x"], "did you mean 'model.segpipe'"),
    "end": (["--extend"], "give the new end"),
}


@pytest.mark.parametrize(("words", "message"), WRONG.values(), ids=WRONG)
def test_a_wrong_option_is_refused_before_a_file_is_read(place, tmp_path, monkeypatch, words, message):
    folder, _, model = place

    def refuse(*_, **__):
        raise AssertionError("a file of the dataset was read")

    monkeypatch.setattr("segpipe.dataset.match.match_dataset", refuse)
    monkeypatch.setattr("segpipe.dataset.fingerprint.run.measure", refuse)
    words = [word.format(model=model) for word in words]
    ended = segpipe("train", folder, "--work", tmp_path / "new", *words)
    assert ended.returncode == 2
    assert message in ended.stderr.splitlines()[-1]
    assert not (tmp_path / "new").exists()
