import json

import numpy as np
import pytest

import segpipe
from segpipe.core.labels import Labels
from segpipe.errors import DatasetError
from segpipe.evaluation.score import score_case, summarise_label
from segpipe.io.formats import write_volume
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
    assert json.loads((tmp_path / "scores.json").read_text())["mean_dice"] == pytest.approx(0.5)


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
