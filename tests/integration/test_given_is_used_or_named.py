"""What a user gave is used or named, by the commands."""

import json
import sys
from functools import partial

import nibabel as nib
import numpy as np
import pytest

import segpipe
from segpipe.cli.app import main
from segpipe.dataset.fingerprint.schema import Fingerprint
from segpipe.dataset.splits import make_splits
from segpipe.io.formats import write_volume
from segpipe.planning.schema import Plan
from segpipe.workflows.check import _together
from tests.phantoms import axis_grid, cube_case, write_case


def dataset(folder, cases, *, seed=0):
    for number, case in enumerate(cases):
        image, labels = cube_case(np.random.default_rng(seed + number), (16, 20, 24), (1, 2))
        write_case(folder, case, image, labels, axis_grid(image.shape))
    return folder


@pytest.fixture
def ran(capsys, monkeypatch):
    """Runs a command; returns its exit code, and what it prints as one line."""
    monkeypatch.setenv("COLUMNS", "500")

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["segpipe", *map(str, words)])
        with pytest.raises(SystemExit) as end:
            main()
        shown = capsys.readouterr()
        return end.value.code or 0, " ".join((shown.out + shown.err).split())

    return run


@pytest.fixture
def project(tmp_path):
    folder = dataset(tmp_path / "d", [f"c{n}" for n in range(6)])
    return folder, partial(segpipe.check, folder, work=tmp_path / "w", jobs=1)


def rules(result, severity="warning"):
    return {(f.case, f.rule) for f in result.findings if f.severity == severity}


def test_a_sound_dataset_has_no_warning(project, ran, tmp_path):
    folder, check = project
    assert not check().findings
    code, text = ran("check", folder, "--work", tmp_path / "w")
    assert code == 0
    assert "6 cases, each case by itself" in text
    assert "passed over" not in text


def test_check_lists_label_values_with_cases_and_voxels(project, tmp_path):
    folder, check = project
    (folder / "dataset.json").write_text(
        json.dumps({"labels": {"background": 0, "a": 1, "b": 2, "never": 3}}), encoding="utf-8"
    )
    result = check()
    assert [(v.value, v.name, v.n_cases) for v in result.labels] == [(1, "a", 6), (2, "b", 6), (3, "never", 0)]
    assert result.labels[0].n_voxels > 0
    assert "label never (3) is declared and in no case" in result.notes


def test_a_constant_image_is_blank_whatever_its_value(project, tmp_path):
    folder, check = project
    write_volume(folder / "images" / "c1.nii.gz", np.full((16, 20, 24), 7.0, np.float32), axis_grid((16, 20, 24)))
    assert rules(check(), "error") == {("c1", "blank image")}


def test_a_channel_of_one_value_is_a_warning(tmp_path):
    for case in ("a", "b"):
        image, labels = cube_case(np.random.default_rng(ord(case)), (16, 20, 24))
        grid = axis_grid(image.shape)
        write_volume(tmp_path / "d/imagesTr" / f"{case}_0000.nii.gz", image, grid)
        write_volume(tmp_path / "d/imagesTr" / f"{case}_0001.nii.gz", image * (case == "b") + 3, grid)
        write_volume(tmp_path / "d/labelsTr" / f"{case}.nii.gz", labels, grid)
    found = segpipe.check(tmp_path / "d", work=tmp_path / "w", jobs=1)
    assert rules(found) == {("a", "blank channel")}


def test_equal_images_are_found_in_any_format_and_kept_on_one_side(project, tmp_path):
    folder, check = project
    image, labels = cube_case(np.random.default_rng(0), (16, 20, 24), (1, 2))
    write_volume(folder / "images" / "again.nrrd", image, axis_grid(image.shape))
    write_volume(folder / "labels" / "again.nrrd", labels, axis_grid(image.shape))
    result = check()
    assert rules(result) == {("c0", "equal images")}
    assert "again, c0 have equal images and are kept on one side" in result.notes
    segpipe.plan(folder, work=tmp_path / "w", jobs=1)
    measured = Fingerprint.read(tmp_path / "w" / "fingerprint.json")
    assert measured.equal_images == (("again", "c0"),)
    assert measured.groups["again"] == measured.groups["c0"]


def test_odd_cases_are_named_by_check_and_by_plan(project, ran, tmp_path):
    folder, check = project
    image, labels = cube_case(np.random.default_rng(9), (16, 20, 24), (1, 2))
    labels[0, 0, 0] = 11
    write_case(folder, "slip", image, labels, axis_grid(image.shape))
    write_case(
        folder,
        "large",
        image + 1,
        cube_case(np.random.default_rng(9))[1],
        axis_grid(image.shape, spacing=(120, 40, 40)),
    )
    expected = {("slip", "rare label value"), ("large", "unusual spacing"), ("large", "header")}
    assert rules(check()) == expected
    _, text = ran("plan", folder, "--work", tmp_path / "w")
    assert "slip: rare label value: label value 11 (1 voxel(s))" in text
    assert "large: unusual spacing" in text


def test_every_command_says_how_cases_are_grouped(tmp_path, ran):
    folder = dataset(tmp_path / "d", [f"sub-{s:02d}_ses-{t}" for s in (1, 2) for t in (0, 1, 2)])
    for command in ("check", "plan"):
        _, text = ran(command, folder, "--work", tmp_path / "w")
        assert "6 cases, each case by itself; 3 ids begin with sub-01" in text
    rows = "".join(f"sub-{s:02d}_ses-{t};{s}\r\n" for s in (1, 2) for t in (0, 1, 2))
    (folder / "cases.csv").write_text("Case;PatientID\r\n" + rows, encoding="utf-8")
    for command in ("check", "plan"):
        code, text = ran(command, folder, "--work", tmp_path / "w")
        assert "6 cases of 2 patients by cases.csv" in text
        assert code == 0


def test_a_lost_case_gives_exit_1_in_check_and_3_in_plan(project, ran, tmp_path):
    folder, _ = project
    (folder / "images" / "c9.unknown").write_bytes(b"x")
    code, text = ran("check", folder, "--work", tmp_path / "w")
    assert code == 1
    assert "entries of images/: 7 given, 6 used, 1 passed over" in text
    code, text = ran("plan", folder, "--work", tmp_path / "w")
    assert code == 3
    assert "entries of images/: 7 given, 6 used, 1 passed over" in text


def test_a_document_leaves_the_exit_code(project, ran, tmp_path):
    folder, _ = project
    (folder / "images" / "README.txt").write_text("x", encoding="utf-8")
    for command in ("check", "plan"):
        code, text = ran(command, folder, "--work", tmp_path / "w")
        assert code == 0
        assert "no image: README.txt" in text


def test_notes_of_one_rule_are_one_row(tmp_path, ran):
    for n in range(4):
        image, labels = cube_case(np.random.default_rng(n), (16, 20, 24))
        for channel in (0, 1):
            path = tmp_path / "d/imagesTr" / f"c{n}_000{channel}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            nib.save(nib.Nifti1Image(image.T + channel, np.eye(4)), path)
        write_volume(
            tmp_path / "d/labelsTr" / f"c{n}.nii.gz",
            labels,
            axis_grid(image.shape, spacing=(1, 1, 1), origin=(0, 0, 0)),
        )
    result = segpipe.check(tmp_path / "d", work=tmp_path / "w", jobs=1)
    headers = [f for f in result.findings if f.rule == "header"]
    assert len(headers) == 8
    assert [row[0] for row in _together(tuple(headers))] == ["4 cases: c0, c1, c2, ..."]


@pytest.mark.parametrize("names", [("frame_0000", "frame_0001", "frame_0002", "frame_0003"), ("a", "b", "c", "d")])
def test_what_digits_were_is_kept_in_the_plan(tmp_path, names):
    segpipe.plan(dataset(tmp_path / "d", names), work=tmp_path / "w", jobs=1)
    plan = Plan.read(tmp_path / "w" / "plan.json")
    assert plan.digits == ("case" if names[0] == "frame_0000" else "channel")
    # Plans whose names have no digits are as they were before there was this field.
    assert ("digits" in plan.model_dump()) == (plan.digits == "case")


def test_splits_keep_equal_images_together(project, tmp_path):
    folder, _ = project
    image, labels = cube_case(np.random.default_rng(0), (16, 20, 24), (1, 2))
    write_case(folder, "again", image, labels, axis_grid(image.shape))
    segpipe.plan(folder, work=tmp_path / "w", jobs=1)
    measured = Fingerprint.read(tmp_path / "w" / "fingerprint.json")
    splits = make_splits(measured.groups, "")
    assert all(len({"again", "c0"} & set(fold.validation)) != 1 for fold in splits.folds)


def scored(tmp_path, predicted, references):
    for folder, names in (("p", predicted), ("r", references)):
        for name in names:
            labels = np.zeros((4, 5, 6), np.uint8)
            labels[1:3, 1:3, 1:3] = 1
            labels[0, 0, 0] = 7 if folder == "p" else 0
            labels[3, 4, 5] = 9 if folder == "r" else 0
            write_volume(tmp_path / folder / f"{name}.nii.gz", labels, axis_grid((4, 5, 6)))
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "x": 1}}), encoding="utf-8")
    return tmp_path / "p", tmp_path / "r"


def test_predictions_without_a_reference_and_values_without_a_label_are_named(tmp_path, ran):
    p, r = scored(tmp_path, ["a", "b", "far"], ["a", "b"])
    (p / "predictions.jsonl").write_text("", encoding="utf-8")
    code, text = ran("evaluate", p, r, "--labels", tmp_path / "dataset.json")
    assert code == 3
    assert "3 given, 2 used, 1 passed over no reference of this name" in text
    assert ": far" in text
    assert "value 7 belongs to no label; declared are [0, 1]: a (1 voxels), b (1 voxels)" in text
    assert "value 9 belongs to no label; declared are [0, 1]: a (1 voxels), b (1 voxels)" in text


def test_when_everything_is_scored_nothing_is_said(tmp_path, ran):
    p, r = scored(tmp_path, ["a"], ["a"])
    code, text = ran("evaluate", p, r)
    assert code == 0
    assert "passed over" not in text
    assert "given" not in segpipe.evaluate(p, r).model_dump()


def test_a_reference_that_is_not_read_is_a_lost_case(tmp_path, ran):
    p, r = scored(tmp_path, ["a"], ["a"])
    (r / "b.unknown").write_bytes(b"x")
    code, text = ran("evaluate", p, r)
    assert code == 3
    assert "the format .unknown is not read" in text


def test_postprocessing_names_what_it_does_not_use(tmp_path, ran):
    p, r = scored(tmp_path, ["a", "far"], ["a"])
    code, text = ran("postprocess", p, "--references", r, "--rules", tmp_path / "rules.json")
    assert code == 3
    assert "no reference of this name" in text
