"""What an older version wrote is opened by this one: a workspace, a model, half-trained checkpoints."""

import json
import os
import shutil
import sys
import time
from hashlib import sha256
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest

import segpipe
from segpipe.cli.app import main
from segpipe.crossvalidation.schema import CrossvalDesign, CrossvalResult, CrossvalSplits
from segpipe.dataset.fingerprint.schema import Fingerprint
from segpipe.dataset.schema import Dataset
from segpipe.dataset.splits import Splits
from segpipe.errors import ModelError
from segpipe.evaluation.schema import Evaluation
from segpipe.io.formats import read_volume
from segpipe.models.file import ModelFile
from segpipe.planning.schema import Plan
from segpipe.training.schema import TrainingRecord
from segpipe.version import CASES_AS_OF, __version__

TINY = "work/models/3d_fullres/tiny"
ARTEFACTS = {
    "work/plan.json": (Plan, "55986d1af89adbbd277b1b102009577efa15d8cd2e5d9c19a8f95556acca8ce4"),
    "work/fingerprint.json": (Fingerprint, "d632cf77b77fcf623394e96c048bb947cfef419d0d104da26546181c7c3a002c"),
    "work/splits.json": (Splits, "374b14e4ff0ae8bfe8c8f03b98674057da15b0c8e8ba9035c457385ac224362e"),
    "work/dataset.json": (Dataset, "8504324b6d6867a2ede28870247f5a347a41416e6dbe6b924a25a2283ceaec68"),
    "work/evaluation/3d_fullres/tiny/fold_0.json": (Evaluation, None),
    "work/models/3d_fullres/tiny/fold_0/record.json": (TrainingRecord, None),
    "work/crossval/design.json": (CrossvalDesign, None),
    "work/crossval/splits.json": (CrossvalSplits, None),
    "work/crossval/result.json": (CrossvalResult, None),
}
"""Artefacts of 0.1.0.dev5: their kind, and their digest where later artefacts cite it by one."""
MODELS = {
    f"{TINY}/model.segpipe": "6e4c6a9d11a32bc65baa5672142c3a483e245d42c8e358a8c320b9503cdd95d4",
    f"{TINY}+planned_width=0.5~distilled/model.segpipe": "58f1c366afd9d1230a2a5c26e1cfb9a4778a3f15f533c59dd6fbb7ef6c39b713",
    "work/crossval/model.segpipe": "6dfafbe7551fd692d1697030a6a78818f46f55ff8edcb2c319d192a8e50ec698",
}

KEPT = sorted((Path(__file__).parents[1] / "fixtures").glob("workspace-*.zip"))


@pytest.fixture(params=KEPT, ids=lambda p: p.stem)
def old(request, tmp_path) -> Path:
    """The folder of a kept dataset and its workspace, free to be changed."""
    with ZipFile(request.param) as archive:
        archive.extractall(tmp_path)
    return tmp_path


def test_archives_are_small_and_there():
    assert KEPT
    assert all(p.stat().st_size <= 1_000_000 for p in KEPT)


def test_a_run_reports_its_own_fold_whatever_was_scored_last(old):
    scored = old / "work/evaluation/3d_fullres"
    other = next(scored.glob("tiny+*/fold_0.json"))
    tomorrow = time.time() + 86400
    os.utime(other, (tomorrow, tomorrow))
    done = segpipe.run(
        old / "dataset", work=old / "work", recipe=old / "tiny.toml", epochs=12, resume=True, jobs=1, device="cpu"
    )
    page = done.report.read_text(encoding="utf-8")
    assert "recipe tiny, fold 0" in page
    assert other.parent.name not in page
    both = segpipe.report(old / "work").read_text(encoding="utf-8")
    assert "recipe tiny, fold 0" in both
    assert f"recipe {other.parent.name}, fold 0" in both


def test_a_half_trained_fold_is_trained_to_its_end(old):
    log = old / "work/models/3d_fullres/tiny/fold_1/log.jsonl"
    before = log.read_text(encoding="utf-8").splitlines()
    result = segpipe.train(old / "dataset", work=old / "work", fold=1, resume=True, jobs=1, device="cpu")
    record = TrainingRecord.read(result.folder.record)
    assert (record.epochs, len(before)) == (8, 3)
    assert log.read_text(encoding="utf-8").splitlines()[:3] == before
    assert result.held_out is not None


def test_a_half_taught_student_is_taught_to_its_end(old):
    segpipe.distill(
        old / "dataset", work=old / "work", teacher=old / "work/models/3d_fullres/tiny", student="width=0.5",
        kd=["voxel", "masked:at=encoder.stages.1"], name="half", compare=False, resume=True, jobs=1, device="cpu",
    )  # fmt: skip
    folder = old / "work/models/3d_fullres/tiny+planned_width=0.5~half/fold_0"
    assert TrainingRecord.read(folder / "record.json").epochs == 4


def test_a_model_predicts_what_it_predicted(old):
    kept = old / "work/predictions/3d_fullres/tiny/fold_0"
    case = next(kept.glob("case_*.nii.gz"))
    shutil.copytree(old / "dataset/images", old / "scans")
    segpipe.predict(old / "scans", old / "out", model=old / "work/models/3d_fullres/tiny", jobs=1, device="cpu")
    now, then = (read_volume(folder / case.name).array for folder in (old / "out", kept))
    # Another processor computes in another precision.
    assert (now != then).mean() < 1e-3
    assert set(np.unique(now)) == {0, 2, 5}


def test_a_finished_cross_validation_is_complete(old):
    found = segpipe.crossval_status(old / "work")
    assert {standing.state for standing in found.standings.values()} == {"done"}
    assert found.result is not None
    assert found.model is not None


# Digests --------------------------------------------------------------------------------------------------------------------------


def test_digests_are_those_of_the_version_that_wrote_them(old, tmp_path):
    assert __version__ not in (p.stem.removeprefix("workspace-") for p in KEPT), (
        "nothing older than this version is tested"
    )
    for name, (kind, digest) in ARTEFACTS.items():
        found = kind.read(old / name)
        if kind is not TrainingRecord:
            # Records of version 1 are migrated; nothing cites them by a digest.
            assert found.digest() == (digest or sha256((old / name).read_bytes()).hexdigest()), name
        again = found.write(tmp_path / "again.json")
        assert json.loads(again.read_text(encoding="utf-8"))["made_by"] == __version__
        assert kind.read(again).digest() == found.digest(), name
    for name, digest in MODELS.items():
        model = ModelFile.read(old / name)
        assert (model.made_by, model.digest(model.used(()))) == (None, digest)
        model.write(tmp_path / "again.segpipe")
        again = ModelFile.read(tmp_path / "again.segpipe")
        assert (again.made_by, again.digest(again.used(()))) == (__version__, digest)


def test_cases_are_measured_as_the_version_that_wrote_them_did(old):
    """What follows from the cases, and so every trained fold, stays valid: measuring again from the files gives the same bytes."""
    before = Fingerprint.read(old / "work/fingerprint.json")
    plan = (old / "work/plan.json").read_text(encoding="utf-8")
    shutil.rmtree(old / "work/cases")
    (old / "work/fingerprint.json").unlink()
    segpipe.plan(old / "dataset", work=old / "work", recipe=old / "tiny.toml", jobs=1)
    after = Fingerprint.read(old / "work/fingerprint.json")
    assert (after.software, after.digest()) == (CASES_AS_OF, before.digest())
    assert Plan.read(old / "work/plan.json").to_json() == plan


def test_the_same_plan_of_another_version_is_not_called_replaced(old, monkeypatch, capsys):
    plan = (old / "work/plan.json").read_bytes()
    words = (
        "run",
        old / "dataset",
        "--work",
        old / "work",
        "--recipe",
        old / "tiny.toml",
        "--device",
        "cpu",
        "--jobs",
        "1",
    )
    code, said = _command(monkeypatch, capsys, *words)
    assert (code, "fold was trained before" in said) == (1, True)
    assert "replaced" not in said
    assert (old / "work/plan.json").read_bytes() == plan


# Refusals -------------------------------------------------------------------------------------------------------------------------


def _command(monkeypatch, capsys, *words):
    """Run a command as the console script does; returns its exit code and what it prints on stderr."""
    monkeypatch.setattr(sys, "argv", ["segpipe", *map(str, words)])
    with pytest.raises(SystemExit) as end:
        main()
    return end.value.code, capsys.readouterr().err


def _rewritten(model, part, **changes):
    """Change keys of a JSON text inside a model file, as another version would have written it."""
    with ZipFile(model) as archive:
        held = {name: archive.read(name) for name in archive.namelist()}
    held[part] = json.dumps(json.loads(held.get(part, "{}")) | changes).encode()
    with ZipFile(model, "w") as archive:
        for name, content in held.items():
            archive.writestr(name, content)


COMMANDS = {
    "export": ("export", "{model}", "{old}/out"),
    "predict": ("predict", "{old}/dataset/images", "{old}/out", "--model", "{model}", "--device", "cpu"),
    "postprocess": ("postprocess", "{old}/dataset/labels", "{old}/out", "--model", "{model}"),
    "choose rules": ("postprocess", "{old}/dataset/labels", "--references", "{old}/dataset/labels", "--model", "{model}"),
    "distill": (
        "distill", "{old}/dataset", "--work", "{old}/work", "--teacher", "{model}", "--student", "width=0.5", "--device", "cpu",
    ),
    "compare": ("compare", "{model}", "--dataset", "{old}/dataset", "--work", "{old}/work", "--device", "cpu"),
    "train": ("train", "{old}/dataset", "--work", "{old}/fresh", "--init-from", "{model}", "--device", "cpu", "--jobs", "1"),
}  # fmt: skip


@pytest.mark.parametrize("words", COMMANDS.values(), ids=COMMANDS)
def test_a_model_with_a_key_that_no_plan_has_is_an_error_in_one_line(old, monkeypatch, capsys, words):
    model = old / TINY / "model.segpipe"
    _rewritten(model, "plan.json", colour=2)
    code, said = _command(monkeypatch, capsys, *(w.format(old=old, model=model) for w in words))
    assert code == 1
    last = said.splitlines()[-1]
    assert last.startswith(
        f"segpipe: {model}: its plan: colour: Extra inputs are not permitted, found 2 (1 problem(s) in all); it is "
    )
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("part", "changes", "what"),
    [
        ("model.json", {"format": 99}, "model file has schema version 99"),
        ("plan.json", {"schema_version": 99}, "its plan: Plan has schema version 99"),
        (
            "postprocessing.json",
            {"schema_version": 99},
            "its post-processing: PostprocessingRules has schema version 99",
        ),
    ],
)
def test_a_newer_model_is_refused_by_the_version_that_made_it(old, monkeypatch, capsys, part, changes, what):
    model = old / TINY / "model.segpipe"
    _rewritten(model, "model.json", made_by="9.1.0")
    _rewritten(model, part, **changes, shape="unheard of")
    words = ("predict", old / "dataset/images", old / "out", "--model", model, "--device", "cpu")
    code, said = _command(monkeypatch, capsys, *words)
    assert code == 1
    assert said.splitlines()[-1].startswith(
        f"segpipe: {model}: {what} and was made by segpipe 9.1.0; segpipe {__version__} reads up to "
    )
    assert said.endswith(": install segpipe 9.1.0 or newer\n")


def test_a_newer_workspace_is_refused_and_left_as_it_is(old, monkeypatch, capsys):
    plan = old / "work/plan.json"
    plan.write_text(
        json.dumps(json.loads(plan.read_text(encoding="utf-8")) | {"schema_version": 99, "made_by": "9.1.0"}),
        encoding="utf-8",
    )
    before = plan.read_bytes()
    for command in ("run", "train"):
        words = (command, old / "dataset", "--work", old / "work", "--device", "cpu", "--jobs", "1")
        code, said = _command(monkeypatch, capsys, *words)
        assert code == 1
        assert said.splitlines()[-1].startswith(
            f"segpipe: {plan}: Plan has schema version 99 and was made by segpipe 9.1.0;"
        )
        assert plan.read_bytes() == before


def test_the_same_dataset_and_recipe_give_the_same_plan(old, tmp_path):
    """Every word of a plan is in its digest, by which trainings are continued."""
    plan = segpipe.plan(old / "dataset", work=tmp_path / "again", recipe=old / "tiny.toml", jobs=1)
    assert plan.digest() == ARTEFACTS["work/plan.json"][1]


def test_a_model_of_no_known_format_is_refused(old):
    model = old / TINY / "model.segpipe"
    _rewritten(model, "model.json", format=0)
    with pytest.raises(ModelError, match=r"model file has format 0, expected 1 to 2"):
        ModelFile.read(model)
