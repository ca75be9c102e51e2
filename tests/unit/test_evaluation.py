import json

import numpy as np
import pytest

import segpipe
from segpipe.core.labels import Labels
from segpipe.core.progress import Watch
from segpipe.errors import DatasetError, UsageError
from segpipe.evaluation.run import match_pairs
from segpipe.evaluation.schema import Evaluation
from segpipe.evaluation.score import SCORED_AS_OF, score_case, summarise_label
from segpipe.io.formats import write_volume
from segpipe.workflows.evaluate import page as evaluate_page
from tests.phantoms import axis_grid

GRID = axis_grid((10, 12, 14), spacing=(2.0, 1.0, 1.0))


def mask(*boxes):
    labels = np.zeros(GRID.shape, dtype=np.uint16)
    for value, box in boxes:
        labels[tuple(slice(*b) for b in box)] = value
    return labels


BOX, MOVED = ((2, 6), (2, 8), (2, 8)), ((2, 6), (2, 8), (3, 9))


def test_every_kind_of_emptiness():
    prediction, reference = (
        mask((1, BOX), (3, ((7, 9), (0, 3), (0, 3)))),
        mask((1, MOVED), (2, ((7, 9), (9, 11), (9, 12)))),
    )
    scores = score_case(
        "a", prediction, reference, GRID, Labels.plain({"both": 1, "missed": 2, "spurious": 3, "neither": 4}), 1.0
    ).labels
    assert scores["both"].status == "scored"
    assert scores["both"].dice == pytest.approx(5 / 6)
    assert scores["both"].hd95_mm == pytest.approx(1.0)
    assert scores["both"].nsd == 1
    diagonal = float(np.linalg.norm(np.array(GRID.shape) * GRID.spacing_mm))
    for name in ("missed", "spurious"):
        assert (scores[name].status, scores[name].dice, scores[name].nsd) == (name, 0, 0)
        assert scores[name].hd95_mm == pytest.approx(diagonal)
    assert (scores["neither"].status, scores["neither"].dice, scores["neither"].hd95_mm) == (
        "not_applicable",
        None,
        None,
    )
    assert scores["both"].volume_reference_ml == pytest.approx(4 * 6 * 6 * 2 / 1000)


def test_a_miss_lowers_the_mean_and_is_counted():
    found = score_case("a", mask((1, BOX)), mask((1, BOX)), GRID, Labels.plain({"x": 1}), 1.0).labels["x"]
    missed = score_case("b", mask(), mask((1, BOX)), GRID, Labels.plain({"x": 1}), 1.0).labels["x"]
    absent = score_case("c", mask(), mask(), GRID, Labels.plain({"x": 1}), 1.0).labels["x"]
    summary = summarise_label([found, missed, absent])
    assert (summary.n_cases, summary.n_applicable, summary.n_missed, summary.n_not_applicable) == (3, 2, 1, 1)
    assert summary.mean_dice == 0.5
    assert summary.mean_hd95_mm > 5


def test_folders(tmp_path):
    for case in ("a", "b", "c", "d"):
        write_volume(tmp_path / "ref" / f"{case}.nii.gz", mask((130, BOX), (300, ((7, 9), (9, 11), (9, 12)))), GRID)
    for case in ("a", "b"):
        write_volume(tmp_path / "pred" / f"{case}.nii.gz", mask((130, BOX)), GRID)
    write_volume(tmp_path / "pred" / "c.nii.gz", mask((130, BOX)), axis_grid(GRID.shape, spacing=(2.0, 1.0, 1.1)))
    result = segpipe.evaluate(tmp_path / "pred", tmp_path / "ref", output=tmp_path / "scores.json", jobs=1)
    assert result.labels == {"label_130": (130,), "label_300": (300,)}
    assert [c.case for c in result.cases] == ["a", "b"]
    assert result.by_label["label_300"].n_missed == 2
    assert result.mean_dice == pytest.approx(0.5)
    assert result.n_missed == 2
    assert "spacing" in result.failed["c"]
    assert "no prediction" in result.failed["d"]
    assert json.loads((tmp_path / "scores.json").read_text(encoding="utf-8"))["mean_dice"] == pytest.approx(0.5)


def test_one_name_with_two_endings_is_failed_not_chosen(tmp_path):
    for name in ("pred/a.nii.gz", "pred/a.nrrd", "ref/a.nii.gz", "pred/b.nii.gz", "ref/b.nii.gz"):
        write_volume(tmp_path / name, mask((1, BOX)), GRID)
    result = segpipe.evaluate(tmp_path / "pred", tmp_path / "ref", jobs=1)
    assert [c.case for c in result.cases] == ["b"]
    assert "a.nii.gz and a.nrrd" in result.failed["a"]


def test_two_files_and_nothing(tmp_path):
    write_volume(tmp_path / "a.nii.gz", mask((1, BOX)), GRID)
    assert segpipe.evaluate(tmp_path / "a.nii.gz", tmp_path / "a.nii.gz", jobs=1).mean_dice == 1
    (tmp_path / "none").mkdir()
    with pytest.raises(DatasetError, match="no image file"):
        segpipe.evaluate(tmp_path, tmp_path / "none")
    with pytest.raises(DatasetError, match="no file has the name"):
        segpipe.evaluate(tmp_path / "none", tmp_path)


def test_a_label_in_no_case_is_named_not_averaged():
    from segpipe.evaluation.run import evaluate

    result = evaluate([], Labels.plain({"x": 1}), workers=1)
    assert result.mean_dice is None
    assert result.without_cases == ("x",)


def declaration(tmp_path, **labels):
    (tmp_path / "labels.json").write_text(json.dumps({"labels": {"background": 0, **labels}}), encoding="utf-8")
    return tmp_path / "labels.json"


def shown(result):
    page = evaluate_page(result, None)
    return page.exit_code, "\n".join(part for part in page.parts if isinstance(part, str))


def test_values_that_are_not_declared_are_listed(tmp_path):
    stray = ((7, 9), (0, 3), (0, 3))
    for case in ("a", "b"):
        write_volume(tmp_path / "pred" / f"{case}.nii.gz", mask((1, BOX), (3, stray)), GRID)
        write_volume(tmp_path / "ref" / f"{case}.nii.gz", mask((1, BOX), (7, stray)), GRID)
    write_volume(tmp_path / "pred" / "a.nii.gz", mask((1, BOX), (9, stray)), GRID)
    labels = declaration(tmp_path, x=1, ignore=9)
    result = segpipe.evaluate(tmp_path / "pred", tmp_path / "ref", labels=labels, jobs=1)
    assert result.by_label["x"].mean_dice == 1
    assert [(g.kind, g.n_given, len(g.passed_over)) for g in result.given if g.passed_over] == [
        ("values in predictions", 6, 2),
        ("values in references", 6, 2),
    ]
    exit_code, text = shown(result)
    # No case is lost by it.
    assert exit_code == 0
    assert "values in predictions: 6 given, 4 used, 2 passed over" in text
    assert "value 3 belongs to no label; declared are [0, 1, 9]: b (18 voxels)" in text
    assert "value 9 is the ignored one, which only a reference can hold: a (18 voxels)" in text
    assert "value 7 belongs to no label; declared are [0, 1, 9]: a (18 voxels), b (18 voxels)" in text
    # Without a declaration every value is a label.
    assert not any(g.passed_over for g in segpipe.evaluate(tmp_path / "pred", tmp_path / "ref", jobs=1).given)


def test_a_prediction_without_a_reference_is_listed_and_what_lies_beside_one_is_none(tmp_path):
    for name in ("ref/a", "pred/a", "pred/a_uncertainty", "pred/h", "pred/h_0000"):
        write_volume(tmp_path / f"{name}.nii.gz", mask((1, BOX)), GRID)
    result = segpipe.evaluate(tmp_path / "pred", tmp_path / "ref", jobs=1)
    assert result.failed == {}
    exit_code, text = shown(result)
    assert exit_code == 3
    assert f"predictions in {tmp_path / 'pred'}: 3 given, 1 used, 2 passed over" in text
    assert f"no reference of this name in {tmp_path / 'ref'}: h, h_0000" in text
    (tmp_path / "pred" / "h.nii.gz").unlink()
    (tmp_path / "pred" / "h_0000.nii.gz").unlink()
    assert shown(segpipe.evaluate(tmp_path / "pred", tmp_path / "ref", jobs=1)) == (0, "")


def test_regions_that_would_be_painted_wrongly_are_scored_and_said(tmp_path):
    write_volume(tmp_path / "a.nii.gz", mask((1, BOX)), GRID)
    content = {"labels": {"background": 0, "core": 1, "whole": [1, 2]}, "regions_class_order": [1, 2]}
    (tmp_path / "labels.json").write_text(json.dumps(content), encoding="utf-8")
    said = []

    class Listening(Watch):
        def note(self, text):
            said.append(text)

    files = tmp_path / "a.nii.gz", tmp_path / "a.nii.gz"
    result = segpipe.evaluate(*files, labels=tmp_path / "labels.json", jobs=1, watch=Listening())
    assert result.by_label["core"].mean_dice == result.by_label["whole"].mean_dice == 1
    assert [text.split(": ", 1)[1] for text in said] == [
        "painted in this order, voxels of value 1 (core, whole) are written as 2, lost from core"
    ]


def test_surface_dice_by_area_is_asked_for_and_named(tmp_path):
    write_volume(tmp_path / "a.nii.gz", mask((1, BOX)), GRID)
    write_volume(tmp_path / "b.nii.gz", mask((1, ((2, 6), (2, 8), (2, 12)))), GRID)
    files = tmp_path / "a.nii.gz", tmp_path / "b.nii.gz"
    voxels, area = (segpipe.evaluate(*files, nsd=unit, jobs=1) for unit in ("voxels", "area"))
    assert (voxels.nsd_unit, area.nsd_unit) == ("voxels", "area")
    assert voxels.mean_nsd != area.mean_nsd
    assert voxels.mean_hd95_mm == area.mean_hd95_mm
    headings = [evaluate_page(result, None).parts[0].columns[2] for result in (voxels, area)]
    assert headings == ["NSD 1 mm", "NSD 1 mm (area)"]


def test_an_evaluation_says_by_which_rules_it_was_scored_and_older_ones_are_read(tmp_path):
    write_volume(tmp_path / "a.nii.gz", mask((1, BOX)), GRID)
    result = segpipe.evaluate(tmp_path / "a.nii.gz", tmp_path / "a.nii.gz", jobs=1)
    assert result.scored_as_of == SCORED_AS_OF
    new = ("scored_as_of", "nsd_unit", "given")
    old = {k: v for k, v in result.model_dump(mode="json").items() if k not in new}
    read = Evaluation.from_json(json.dumps(old), advice="")
    assert (read.scored_as_of, read.nsd_unit, read.cases) == ("", "voxels", result.cases)
    assert json.loads(read.to_json()) == old


@pytest.mark.parametrize("names", [("a.nii.gz", "folder"), ("folder", "a.nii.gz")])
def test_a_file_and_a_folder_are_no_pair(tmp_path, names):
    (tmp_path / "folder").mkdir()
    (tmp_path / "a.nii.gz").write_bytes(b"x")
    with pytest.raises(UsageError, match=r"is a file and .* is a folder; give two files, or two folders"):
        match_pairs(*(tmp_path / name for name in names))
