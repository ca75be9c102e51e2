import json
import os
import shutil
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest

import segpipe
from segpipe.core.labels import Labels
from segpipe.core.progress import SILENT, Watch
from segpipe.core.workspace import Workspace
from segpipe.dataset.fingerprint.schema import CaseFingerprint, Fingerprint
from segpipe.dataset.match import match_dataset
from segpipe.dataset.schema import Dataset
from segpipe.errors import ArtefactError
from segpipe.evaluation.comparison import ALL_LABELS
from segpipe.evaluation.run import evaluate
from segpipe.evaluation.schema import CaseScores, Evaluation, LabelScore
from segpipe.evaluation.score import SCORED_AS_OF
from segpipe.io.formats import write_volume
from segpipe.losses.spec import DEFAULT_LOSS, CrossEntropyTerm, DiceTerm, FocalTerm, TverskyTerm
from segpipe.reporting import figures
from segpipe.reporting.run import draw_extremes, report, scored_places
from segpipe.workflows.report import _score_again
from tests.phantoms import axis_grid

KEPT = sorted((Path(__file__).parents[1] / "fixtures").glob("workspace-*.zip"))[0]
PLAIN, STUDENT = "3d_fullres/tiny", "3d_fullres/tiny+planned_width=0.5~distilled"


@pytest.fixture
def workspace(tmp_path) -> Workspace:
    """A workspace with a fold of two variants, and pictures of their examples."""
    with ZipFile(KEPT) as archive:
        archive.extractall(tmp_path)
    for variant in (PLAIN, STUDENT):
        (tmp_path / "work/models" / variant / "fold_0/example_1_worst_case_0.png").write_bytes(b"png")
    return Workspace(tmp_path / "work")


def add_fold(workspace: Workspace, variant: str, fold: int) -> None:
    """Copy fold 0 of a variant as another fold."""
    models = workspace.root / "models" / variant
    shutil.copytree(models / "fold_0", models / f"fold_{fold}", dirs_exist_ok=True)
    record = json.loads((models / "fold_0/record.json").read_text(encoding="utf-8"))
    (models / f"fold_{fold}/record.json").write_text(json.dumps({**record, "fold": fold}), encoding="utf-8")
    evaluation = workspace.evaluation / variant
    shutil.copy(evaluation / "fold_0.json", evaluation / f"fold_{fold}.json")


def test_all_scored_folds_are_reported_in_an_order_that_file_times_do_not_change(workspace):
    for fold in (10, 2):
        add_fold(workspace, PLAIN, fold)
    expected = [*(Path(PLAIN) / f"fold_{k}" for k in (0, 2, 10)), Path(STUDENT) / "fold_0"]
    for oldest in expected:
        os.utime(workspace.evaluation / oldest.with_suffix(".json"), (0, 0))
        assert scored_places(workspace) == expected
    page = segpipe.report(workspace.root).read_text(encoding="utf-8")
    shown = [page.index(f"<h2>3d_fullres, {place.parts[1]}, fold {place.name[5:]}</h2>") for place in expected]
    assert shown == sorted(shown)
    assert page.count("<h2>Scores per label</h2>") == page.count("<h2>Training</h2>") == 4
    # One plan per variant.
    assert page.count("<h2>What was planned, and why: ") == 2
    assert page.count("<td>target spacing</td>") == 2


def test_the_fold_that_is_asked_for_is_reported(workspace):
    add_fold(workspace, PLAIN, 1)
    page = segpipe.report(workspace.root, fold=1).read_text(encoding="utf-8")
    assert "recipe tiny, fold 1:" in page
    assert "fold 0" not in page
    assert page.count("<h2>Scores per label</h2>") == 1
    assert "<h2>What was planned, and why</h2>" in page
    with pytest.raises(ArtefactError, match="fold 3 has not been evaluated, only 0, 1; run"):
        segpipe.report(workspace.root, fold=3)


def test_nothing_scored_is_said(tmp_path):
    with pytest.raises(ArtefactError, match="nothing has been evaluated"):
        segpipe.report(tmp_path)


def test_the_plan_that_trained_a_fold_is_shown_whatever_was_planned_since(workspace):
    place = Path(PLAIN) / "fold_0"
    before = report(workspace, [place]).read_text(encoding="utf-8")
    changed = json.loads(workspace.plan.read_text(encoding="utf-8"))
    changed["decisions"] = [{"rule": "another rule", "chosen": "x", "because": "y"}]
    workspace.plan.write_text(json.dumps(changed), encoding="utf-8")
    after = report(workspace, [place]).read_text(encoding="utf-8")
    assert "<td>target spacing</td>" in before
    assert "<td>target spacing</td>" in after
    assert "another rule" not in after


def test_another_plan_is_not_shown_as_a_folds_own(workspace):
    place = Path(PLAIN) / "fold_0"
    (workspace.root / "models" / place / "curves.png").write_bytes(b"as it was drawn")
    before = report(workspace, [place]).read_text(encoding="utf-8")
    assert "<td>target spacing</td>" in before
    changed = json.loads(workspace.plan.read_text(encoding="utf-8"))
    changed["training"]["loss"] = [{"name": "focal"}]
    workspace.plan.write_text(json.dumps(changed), encoding="utf-8")
    workspace.model("3d_fullres", "tiny").unlink()
    (workspace.root / "models" / place / "curves.png").write_bytes(b"as it was drawn")
    after = report(workspace, [place]).read_text(encoding="utf-8")
    assert "another plan by now" in after
    assert "<td>target spacing</td>" not in after
    assert (workspace.root / "models" / place / "curves.png").read_bytes() == b"as it was drawn"


# The training curve


def drawn_axis(tmp_path, monkeypatch, loss, **line) -> str:
    """Text beside the axis of the loss."""
    kept = []
    monkeypatch.setattr(figures, "save", lambda figure, path, _: kept.append(figure) or path)
    epoch = {"elapsed_s": 60, "train_loss": 0.5, "validation_dice": [0.5], "mean_validation_dice": 0.5, **line}
    (tmp_path / "log.jsonl").write_text(json.dumps(epoch) + "\n", encoding="utf-8")
    figures.training_curve(tmp_path / "log.jsonl", ("organ",), loss, tmp_path / "curves.png")
    return kept[0].axes[0].get_ylabel().replace("\n", " ")


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (DEFAULT_LOSS, "loss (dice + cross_entropy)"),
        ((FocalTerm(),), "loss (focal)"),
        (
            (TverskyTerm(weight=0.5), CrossEntropyTerm(), DiceTerm(weight=2)),
            "loss (0.5 tversky + cross_entropy + 2 dice)",
        ),
    ],
)
def test_the_axis_names_the_loss_of_the_recipe(tmp_path, monkeypatch, loss, expected):
    assert drawn_axis(tmp_path, monkeypatch, loss) == expected


def test_the_axis_says_that_terms_of_a_distillation_are_in_the_loss(tmp_path, monkeypatch):
    found = drawn_axis(tmp_path, monkeypatch, DEFAULT_LOSS, guide={"voxel": 0.1})
    assert found == "loss (dice + cross_entropy + distillation)"


# The examples


def scores_of(case: str, *dice: float | None) -> CaseScores:
    def label(value: float | None) -> LabelScore:
        status = "not_applicable" if value is None else "scored"
        return LabelScore(
            status=status, dice=value, nsd=value, hd95_mm=value, volume_prediction_ml=0, volume_reference_ml=0
        )

    return CaseScores(case=case, labels={f"label_{n}": label(value) for n, value in enumerate(dice)})


def test_a_case_to_which_no_label_applies_is_no_example(tmp_path, monkeypatch, workspace):
    drawn = []
    monkeypatch.setattr("segpipe.reporting.run.overlay", lambda *given: drawn.append(given[4]))
    dataset, labels = Dataset.read(workspace.dataset), Labels.plain({"label_0": 1, "label_1": 2})
    where = {c.id: tmp_path for c in dataset.cases}
    scored = [scores_of("case_0", 0.5, None), scores_of("case_1", None, None), scores_of("case_2", 0.9, 0.7)]
    draw_extremes(scored, dataset, labels, where, tmp_path)
    assert drawn == ["case_0: worst case, mean Dice 0.500", "case_2: best case, mean Dice 0.800"]
    assert draw_extremes([scores_of("case_1", None, None)], dataset, labels, where, tmp_path) == []


def test_one_mean_of_a_case_everywhere():
    from segpipe.crossvalidation.statistics import spread
    from segpipe.evaluation.score import case_value
    from segpipe.evaluation.statistics import paired_scores

    some, none = scores_of("a", 0.5, None, 0.75), scores_of("b", None, None, None)
    assert case_value(some, ALL_LABELS, "dice") == 0.625
    assert case_value(some, "label_0", "dice") == 0.5
    assert case_value(some, "label_1", "dice") is None
    assert case_value(some, "elsewhere", "dice") is None
    assert case_value(none, ALL_LABELS, "dice") is None
    patients = {"a": "p", "b": "q"}
    assert spread({"0": [some, none]}, patients, ALL_LABELS, "dice").n_patients == 1
    assert paired_scores((some, none), (some, none), patients, ALL_LABELS, "dice") == ({"p": 0.625}, {"p": 0.625})
    # Where the second model finds what is not there, the first is right.
    wrong = scores_of("b", 0.0, None, None)
    assert paired_scores((none,), (wrong,), patients, ALL_LABELS, "dice") == ({"q": 1.0}, {"q": 0.0})


# Scores of earlier versions


@pytest.fixture
def scored_before(tmp_path) -> Workspace:
    """A workspace with a fold whose scores an earlier version made; of two discs in a picture, 4 pixels apart."""
    place, shape = Path("2d/tiny/fold_0"), (1, 80, 100)
    y, x = np.mgrid[:80, :100]
    workspace, images = Workspace(tmp_path / "w"), []
    for name, centre in (("images/a", 50), ("labels/a", 48), (f"w/predictions/{place}/a", 52)):
        disc = ((y - 40) ** 2 + (x - centre) ** 2 <= 30**2)[None]
        write_volume(tmp_path / f"{name}.nii.gz", disc.astype(np.uint8), axis_grid(shape, spacing=(9.0, 1.0, 1.0)))
        images.append(tmp_path / f"{name}.nii.gz")
    match_dataset(tmp_path).write(workspace.dataset)
    labels = Labels.plain({"x": 1})
    flat = CaseFingerprint(case="a", shape=shape, spacing_mm=(9.0, 1.0, 1.0), shape_after_crop=shape)
    Fingerprint(
        dataset_name="d", dataset_digest="", software="", channel_names=("c",), labels=labels, n_training_cases=1,
        cases=(flat,), intensities=(), median_relative_size_after_cropping=1.0,
    ).write(workspace.fingerprint)  # fmt: skip
    right = evaluate([("a", images[2], images[1])], labels, tolerance_mm=2.0, workers=1)
    old = json.loads(right.to_json()) | {"mean_nsd": 0.99, "mean_hd95_mm": 1.4}
    old["failed"] = {"b": "no prediction"}
    for name in ("scored_as_of", "nsd_unit", "given"):
        old.pop(name, None)
    file = workspace.evaluation / place.with_suffix(".json")
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(old), encoding="utf-8")
    return workspace


def test_scores_of_pictures_that_an_earlier_version_made_are_made_again(scored_before):
    place = Path("2d/tiny/fold_0")
    file = scored_before.evaluation / place.with_suffix(".json")
    _score_again(scored_before, place, SILENT)
    again = Evaluation.read(file)
    assert (again.mean_hd95_mm, again.tolerance_mm, again.failed) == (4.0, 2.0, {"b": "no prediction"})
    assert again.scored_as_of == SCORED_AS_OF
    # Once.
    os.utime(file, (0, 0))
    _score_again(scored_before, place, SILENT)
    assert file.stat().st_mtime == 0


def test_scores_that_cannot_be_made_again_are_said_to_be_wrong(scored_before):
    place = Path("2d/tiny/fold_0")
    (scored_before.predictions / place / "a.nii.gz").unlink()
    said = []

    class Listening(Watch):
        def note(self, text):
            said.append(text)

    _score_again(scored_before, place, Listening())
    assert len(said) == 1
    assert "NSD and HD95 of two-dimensional images are wrong" in said[0]
    assert "a.nii.gz is not there any more" in said[0]


def test_scores_of_volumes_are_kept_as_they_are(workspace):
    file = workspace.evaluation / PLAIN / "fold_0.json"
    before = file.read_bytes()
    segpipe.report(workspace.root)
    assert file.read_bytes() == before
