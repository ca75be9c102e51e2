import json

import numpy as np
import pytest

from segpipe.core.labels import Labels
from segpipe.dataset.match import match_dataset
from segpipe.dataset.run import CheckResult
from segpipe.errors import DatasetError
from segpipe.io.formats import write_volume
from segpipe.workflows.check import page
from segpipe.workflows.options import CheckOptions
from tests.phantoms import axis_grid

GRID = axis_grid((3, 4, 5))


def put(path, value=1):
    write_volume(path, np.full(GRID.shape, value, dtype=np.int16), GRID)


def ids(dataset):
    return [c.id for c in dataset.cases]


def test_nnunet_raw(tmp_path):
    for case in ("b", "a"):
        for channel in (0, 1):
            put(tmp_path / "imagesTr" / f"{case}_{channel:04d}.nii.gz")
        put(tmp_path / "labelsTr" / f"{case}.nii.gz")
    (tmp_path / "dataset.json").write_text(
        json.dumps(
            {"channel_names": {"0": "T1", "1": "T2"}, "labels": {"background": 0, "x": 1}, "file_ending": ".nii.gz"}
        ),
        encoding="utf-8",
    )
    found = match_dataset(tmp_path)
    assert found.layout == "nnunet"
    assert ids(found) == ["a", "b"]
    assert [i.path.name for i in found.cases[0].images] == ["a_0000.nii.gz", "a_0001.nii.gz"]
    assert found.channel_names == ("T1", "T2")
    assert found.labels == Labels.plain({"x": 1})


def test_decathlon(tmp_path):
    put(tmp_path / "imagesTr" / "a.nii.gz")
    put(tmp_path / "labelsTr" / "a.nii.gz")
    training = [{"image": "./imagesTr/a.nii.gz", "label": "./labelsTr/a.nii.gz"}]
    (tmp_path / "dataset.json").write_text(
        json.dumps(
            {"name": "Organ", "modality": {"0": "MRI"}, "labels": {"0": "background", "1": "x"}, "training": training}
        ),
        encoding="utf-8",
    )
    found = match_dataset(tmp_path)
    assert (found.name, found.layout, ids(found), found.channel_names) == ("Organ", "decathlon", ["a"], ("MRI",))
    assert found.labels == Labels.plain({"x": 1})


def test_nnunet_version_1_lists_images_without_their_suffix(tmp_path):
    put(tmp_path / "imagesTr" / "a_0000.nii.gz")
    put(tmp_path / "labelsTr" / "a.nii.gz")
    training = [{"image": "./imagesTr/a.nii.gz", "label": "./labelsTr/a.nii.gz"}]
    (tmp_path / "dataset.json").write_text(
        json.dumps({"modality": {"0": "MRI"}, "labels": {"0": "bg", "1": "x"}, "training": training}), encoding="utf-8"
    )
    assert match_dataset(tmp_path).layout == "nnunet"
    assert ids(match_dataset(tmp_path)) == ["a"]


def test_nnunet_with_listed_files(tmp_path):
    put(tmp_path / "somewhere" / "one.nii.gz")
    put(tmp_path / "elsewhere" / "two.nii.gz")
    listed = {"a": {"images": ["somewhere/one.nii.gz"], "label": "elsewhere/two.nii.gz"}}
    (tmp_path / "dataset.json").write_text(
        json.dumps({"channel_names": {"0": "CT"}, "labels": {"background": 0, "x": 1}, "dataset": listed}),
        encoding="utf-8",
    )
    assert ids(match_dataset(tmp_path)) == ["a"]


@pytest.mark.parametrize(("images", "labels"), [("images", "labels"), ("image", "label")])
def test_pairs_of_mixed_endings(tmp_path, images, labels):
    put(tmp_path / images / "a.nii.gz")
    put(tmp_path / labels / "a.nrrd")
    put(tmp_path / images / "b.mha")
    put(tmp_path / labels / "b.nii")
    found = match_dataset(tmp_path)
    assert (found.layout, ids(found), found.labels) == ("pairs", ["a", "b"], None)
    assert found.channel_names == ("channel_0",)


@pytest.mark.parametrize("kind", ["csv", "json"])
def test_manifest(tmp_path, kind):
    for name in ("x1", "x2", "y"):
        put(tmp_path / f"{name}.nii.gz")
    if kind == "csv":
        path = tmp_path / "cases.csv"
        path.write_text("case,image,image_2,label,patient\na,x1.nii.gz,x2.nii.gz,y.nii.gz,p1\n", encoding="utf-8")
    else:
        path = tmp_path / "cases.json"
        path.write_text(
            json.dumps(
                [{"case": "a", "image": "x1.nii.gz", "image_2": "x2.nii.gz", "label": "y.nii.gz", "patient": "p1"}]
            ),
            encoding="utf-8",
        )
    for root in (tmp_path, path):
        found = match_dataset(root)
        assert (found.layout, ids(found), found.cases[0].group) == ("manifest", ["a"], "p1")
        assert [i.path.name for i in found.cases[0].images] == ["x1.nii.gz", "x2.nii.gz"]
        assert len(found.channel_names) == 2


def test_patients_beside_another_layout(tmp_path):
    put(tmp_path / "images" / "a.nii.gz")
    put(tmp_path / "labels" / "a.nii.gz")
    (tmp_path / "cases.csv").write_text("case,patient\na,p7\n", encoding="utf-8")
    assert match_dataset(tmp_path).cases[0].group == "p7"


def test_what_does_not_match_is_found_and_the_rest_goes_on(tmp_path):
    for case in ("whole", "no_label", "twice"):
        put(tmp_path / "images" / f"{case}.nii.gz")
    put(tmp_path / "images" / "twice.nrrd")
    for case in ("whole", "no_image", "twice"):
        put(tmp_path / "labels" / f"{case}.nii.gz")
    found = match_dataset(tmp_path)
    assert ids(found) == ["whole"]
    assert {f.case: f.rule for f in found.findings} == {
        "no_label": "missing pair",
        "no_image": "missing pair",
        "twice": "duplicate id",
    }
    assert "twice.nii.gz, twice.nrrd" in next(f.message for f in found.findings if f.case == "twice")


def test_a_gap_in_the_channels(tmp_path):
    for name in ("a_0000", "a_0001", "b_0001"):
        put(tmp_path / "imagesTr" / f"{name}.nii.gz")
    for case in ("a", "b"):
        put(tmp_path / "labelsTr" / f"{case}.nii.gz")
    found = match_dataset(tmp_path)
    assert ids(found) == ["a"]
    assert [(f.case, f.rule) for f in found.findings] == [("b", "missing channel")]


def test_manifest_faults(tmp_path):
    put(tmp_path / "x.nii.gz")
    rows = [
        "a,x.nii.gz,x.nii.gz",
        "a,x.nii.gz,x.nii.gz",
        "b,gone.nii.gz,x.nii.gz",
        "c/d,x.nii.gz,x.nii.gz",
        "e,x.nii.gz,",
    ]
    (tmp_path / "cases.csv").write_text("case,image,label\n" + "\n".join(rows) + "\n", encoding="utf-8")
    found = match_dataset(tmp_path)
    assert not found.cases
    assert sorted((f.case, f.rule) for f in found.findings) == [
        ("a", "duplicate id"), ("a", "duplicate id"), ("b", "missing file"), ("c/d", "case id"), ("e", "missing pair"),
    ]  # fmt: skip


def test_digits_that_the_labels_share_belong_to_the_case(tmp_path):
    for case in ("patient_0001", "patient_0002", "patient_0003"):
        put(tmp_path / "images" / f"{case}.nii.gz")
        put(tmp_path / "labels" / f"{case}.nii.gz")
    found = match_dataset(tmp_path)
    assert ids(found) == ["patient_0001", "patient_0002", "patient_0003"]
    assert not found.findings


def test_one_stray_image_does_not_change_the_others(tmp_path):
    for name in ("a_0000", "b_0000", "stray"):
        put(tmp_path / "imagesTr" / f"{name}.nii.gz")
    for case in ("a", "b"):
        put(tmp_path / "labelsTr" / f"{case}.nii.gz")
    found = match_dataset(tmp_path)
    assert ids(found) == ["a", "b"]
    assert [(f.case, f.rule) for f in found.findings] == [("stray", "missing pair")]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("cases.json", b"[{", "not JSON"),
        ("cases.csv", "case,image,label\nm\u00fcller,a,b".encode("latin-1"), "not UTF-8"),
        ("cases.csv", b"case,label\na,b", "layout not recognised"),
    ],
)
def test_a_damaged_manifest_says_so(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DatasetError, match=message):
        match_dataset(tmp_path)


def test_hidden_files_are_passed_over(tmp_path):
    put(tmp_path / "images" / "a.nii.gz")
    put(tmp_path / "labels" / "a.nii.gz")
    (tmp_path / "images" / "._a.nii.gz").write_bytes(b"resource fork")
    assert not match_dataset(tmp_path).findings


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        ({"labels": {"background": 0, "a": 1, "b": 1}}, "one value to two names"),
        ({"labels": {"background": 0, "a": -1}}, "non-negative"),
        ({"labels": {"background": 0, "a": 1.5}}, "1.5"),
        (
            {"labels": {"background": 0, "a": [1, 2], "b": 2}},
            r'regions_class_order is None.*such as "labels".*"regions_class_order": \[1, 2\]',
        ),
        ({"labels": {"a": [1, 2], "b": 2}, "regions_class_order": [2, 1]}, "paints 'b'.*as 1"),
        ({"labels": {"a": [1, 2], "b": 2}, "regions_class_order": [1.5, 2]}, r"regions_class_order is \[1.5, 2\]"),
        ({"labels": {"background": 0, "a": 1, "ignore": 1}}, "'ignore'.*twice"),
        ({"labels": {"ignore": 0, "a": 1}}, "no background is declared"),
        ({"labels": {"background": [0, 3], "a": 1}}, "'background'.*single"),
        ({"labels": {"background": 0}}, "no foreground"),
        ({"channel_names": {"first": "T1"}}, "channel_names"),
    ],
)
def test_a_wrong_declaration_says_what(tmp_path, declared, message):
    put(tmp_path / "images" / "a.nii.gz")
    put(tmp_path / "labels" / "a.nii.gz")
    (tmp_path / "dataset.json").write_text(json.dumps(declared), encoding="utf-8")
    with pytest.raises(DatasetError, match=message):
        match_dataset(tmp_path)


def test_an_unknown_layout_names_what_is_there(tmp_path):
    (tmp_path / "scans").mkdir()
    with pytest.raises(DatasetError, match=r"scans/.*expected imagesTr"):
        match_dataset(tmp_path)
    with pytest.raises(DatasetError, match="no such folder"):
        match_dataset(tmp_path / "gone")


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "layout", "n_cases", "n_groups"),
    [("hippocampus", "decathlon", 80, 0), ("cardiac_cine", "nnunet", 10, 5), ("fetal_brain", "nnunet", 16, 0)],
)
def test_real_datasets(data, name, layout, n_cases, n_groups):
    found = match_dataset(data / name)
    assert (found.layout, len(found.cases), found.findings) == (layout, n_cases, ())
    assert len({c.group for c in found.cases} - {None}) == n_groups


@pytest.fixture
def pairs(tmp_path):
    """Two cases of an image and a label."""
    for case in ("a", "b"):
        put(tmp_path / "images" / f"{case}.nii.gz")
        put(tmp_path / "labels" / f"{case}.nii.gz")
    return tmp_path


def wrong(dataset):
    return {f.case: (f.rule, f.message) for f in dataset.findings}


def test_links_that_lead_nowhere_are_cases(pairs):
    for folder in ("images", "labels"):
        (pairs / folder / "c.nii.gz").symlink_to(pairs / "store" / f"{folder}.nii.gz")
    rule, message = wrong(match_dataset(pairs))["c"]
    assert rule == "missing file"
    assert "link to" in message
    assert "images.nii.gz, which is not there" in message


def test_a_listed_link_that_leads_nowhere_says_where(pairs):
    (pairs / "c.nii.gz").symlink_to(pairs / "store" / "c.nii.gz")
    (pairs / "cases.csv").write_text("case,image,label\nc,c.nii.gz,c.nii.gz\n", encoding="utf-8")
    assert "link to" in wrong(match_dataset(pairs / "cases.csv"))["c"][1]


def test_a_file_of_a_format_that_is_not_read_is_named_with_its_case(pairs):
    (pairs / "images" / "c.unknown").write_bytes(b"x")
    (pairs / "images" / "d.unknown").write_bytes(b"x")
    put(pairs / "labels" / "c.nii.gz")
    found = match_dataset(pairs)
    assert wrong(found)["c"] == (
        "missing pair",
        "label c.nii.gz has no image of the same name; c.unknown: the format .unknown is not read; convert to .nii.gz",
    )
    assert wrong(found)["d"][0] == "not read"
    assert found.passed_over[0] == "entries of images/: 4 given, 2 used, 2 passed over"


def test_images_in_a_sub_folder_are_named(pairs):
    put(pairs / "images" / "patient4" / "x.nii.gz")
    assert wrong(match_dataset(pairs))["patient4"][0] == "not read"


def test_documents_beside_images_are_no_cases(pairs):
    (pairs / "images" / "README.md").write_text("x", encoding="utf-8")
    (pairs / "images" / "a.json").write_text("{}", encoding="utf-8")
    found = match_dataset(pairs)
    assert not found.findings
    assert not any(given.loses_a_case for given in found.given)


def test_what_was_given_is_no_part_of_the_stored_digest(pairs):
    before = match_dataset(pairs).model_dump()
    assert not {"given", "notes", "patients_from"} & set(before)
    (pairs / "images" / "README.md").write_text("x", encoding="utf-8")
    assert match_dataset(pairs).model_dump()["given"]


def test_an_empty_cell_before_a_filled_one_is_a_missing_channel(tmp_path):
    for name in ("t1", "t2", "y"):
        put(tmp_path / f"{name}.nii.gz")
    rows = ["a,t1.nii.gz,t2.nii.gz,y.nii.gz", "b,,t2.nii.gz,y.nii.gz", "c,t1.nii.gz,,y.nii.gz", "d,,,y.nii.gz", ",,,"]
    (tmp_path / "cases.csv").write_text("case,image_1,image_2,label\n" + "\n".join(rows) + "\n", encoding="utf-8")
    found = match_dataset(tmp_path)
    # c has fewer channels, which is found when it is read.
    assert ids(found) == ["a", "c"]
    assert wrong(found)["b"][0] == "missing channel"
    assert "row 2 of cases.csv: image_1 is empty and image_2 is not" in wrong(found)["b"][1]
    assert wrong(found)["d"][1] == "row 4 of cases.csv names no image; fill in image_1"


def test_backslashes_are_read_where_they_lead_to_a_file(tmp_path):
    put(tmp_path / "scans" / "x.nii.gz")
    put(tmp_path / "scans" / "y.nii.gz")
    (tmp_path / "cases.csv").write_text("case,image,label\na,scans\\x.nii.gz,scans\\y.nii.gz\n", encoding="utf-8")
    assert ids(match_dataset(tmp_path)) == ["a"]


def test_ids_from_file_names_that_collide_say_so(tmp_path):
    for patient in ("p1", "p2"):
        put(tmp_path / patient / "ct.nii.gz")
    rows = [f"{p}/ct.nii.gz,{p}/ct.nii.gz" for p in ("p1", "p2")]
    (tmp_path / "cases.csv").write_text("image,label\n" + "\n".join(rows) + "\n", encoding="utf-8")
    rule, message = wrong(match_dataset(tmp_path))["ct"]
    assert rule == "duplicate id"
    assert "the name of their image's file" in message
    assert "column 'case'" in message


def test_folders_of_one_patient_each_are_told_how_to_be_listed(tmp_path):
    for patient in ("B001", "B002"):
        for part in ("t1", "t2", "seg"):
            put(tmp_path / patient / f"{patient}_{part}.nii.gz")
    row = "B001,B001/B001_t1.nii.gz,B001/B001_t2.nii.gz,B001/B001_seg.nii.gz"
    with pytest.raises(DatasetError, match=rf"2 folder.s. hold images.*case,image_1,image_2,label.*{row}"):
        match_dataset(tmp_path)


def test_a_manifest_names_the_patients_of_all_cases_or_of_none(tmp_path):
    put(tmp_path / "x.nii.gz")
    text = "case,image,label,patient\na,x.nii.gz,x.nii.gz,p\nb,x.nii.gz,x.nii.gz,\n"
    (tmp_path / "cases.csv").write_text(text, encoding="utf-8")
    with pytest.raises(DatasetError, match="1 of 2 cases have no patient, such as 'b'"):
        match_dataset(tmp_path)
    (tmp_path / "cases.csv").write_text(text.replace(",p\n", ",\n"), encoding="utf-8")
    assert match_dataset(tmp_path).patients_from == ""


def test_a_patient_table_of_another_spelling_is_an_error(pairs):
    (pairs / "cases.csv").write_text("case,patient\nA,p1\nB,p2\n", encoding="utf-8")
    with pytest.raises(DatasetError, match="'A' looks like case 'a'"):
        match_dataset(pairs)
    (pairs / "cases.csv").unlink()
    (pairs / "Cases.csv").write_text("Case;Patient\na;p1\nb;p1\n", encoding="utf-8")
    found = match_dataset(pairs)
    assert {c.group for c in found.cases} == {"p1"}
    assert found.patients_from == "Cases.csv"


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
@pytest.mark.parametrize(
    "values", [{"background": "0", "x": "1"}, {"background": 0.0, "x": 1.0}, {"0": "background", "1": "x"}]
)
def test_a_declaration_as_editors_and_languages_save_it(pairs, encoding, values):
    (pairs / "dataset.json").write_bytes(json.dumps({"labels": values}).encode(encoding))
    assert match_dataset(pairs).labels == Labels.plain({"x": 1})


def test_another_number_of_training_cases_is_a_note(pairs):
    (pairs / "dataset.json").write_text(json.dumps({"numTraining": 40}), encoding="utf-8")
    assert match_dataset(pairs).notes == ("dataset.json states numTraining 40, and images of 2 case(s) are here",)
    (pairs / "dataset.json").write_text(json.dumps({"numTraining": 2}), encoding="utf-8")
    assert match_dataset(pairs).notes == ()


def test_images_that_a_list_leaves_out_are_counted(pairs):
    (pairs / "images").rename(pairs / "imagesTr")
    training = [{"image": "./imagesTr/a.nii.gz", "label": "./labels/a.nii.gz"}]
    (pairs / "dataset.json").write_text(json.dumps({"training": training}), encoding="utf-8")
    assert match_dataset(pairs).passed_over == [
        "images of imagesTr/: 2 given, 1 used, 1 passed over",
        "  dataset.json does not list it under 'training': b.nii.gz",
    ]


def test_a_label_named_like_a_channel_is_named(tmp_path):
    for channel in (0, 1):
        put(tmp_path / "imagesTr" / f"a_{channel:04d}.nii.gz")
    put(tmp_path / "labelsTr" / "a_0000.nii.gz")
    (tmp_path / "dataset.json").write_text(json.dumps({"channel_names": {"0": "T1", "1": "T2"}}), encoding="utf-8")
    assert "a_0000.nii.gz is named like a channel; rename it to a.nii.gz" in wrong(match_dataset(tmp_path))["a"][1]


def test_another_ending_than_stated_is_a_note(pairs):
    (pairs / "dataset.json").write_text(json.dumps({"file_ending": ".nrrd"}), encoding="utf-8")
    assert match_dataset(pairs).notes == ("dataset.json states file_ending '.nrrd', and the images end in .nii.gz",)


def test_a_table_of_another_name_is_named(pairs):
    (pairs / "participants.tsv").write_text("participant_id\na\n", encoding="utf-8")
    assert match_dataset(pairs).notes == (
        "participants.tsv: not read; a table that names patients is called cases.csv",
    )
    (pairs / "participants.tsv").rename(pairs / "cases.tsv")
    (pairs / "cases.tsv").write_text("case\tpatient\na\tp\nb\tp\n", encoding="utf-8")
    assert match_dataset(pairs).patients_from == "cases.tsv"


def small_pairs(folder, cases=("a", "b")):
    for case in cases:
        put(folder / "images" / f"{case}.nii.gz")
        put(folder / "labels" / f"{case}.nii.gz")


def test_a_table_that_is_a_link_to_nothing_is_named(tmp_path):
    small_pairs(tmp_path)
    (tmp_path / "cases.csv").symlink_to(tmp_path / "gone" / "cases.csv")
    with pytest.raises(DatasetError, match=r"cases\.csv: link to .*which is not there"):
        match_dataset(tmp_path)


def test_a_table_beside_a_manifest_is_named_as_not_used(tmp_path):
    small_pairs(tmp_path)
    (tmp_path / "my.csv").write_text("case,image,label\na,images/a.nii.gz,labels/a.nii.gz\n", encoding="utf-8")
    (tmp_path / "cases.csv").write_text("case,patient\na,P\nb,P\n", encoding="utf-8")
    assert any("cases.csv: not used, since my.csv is" in note for note in match_dataset(tmp_path / "my.csv").notes)


def test_spellings_of_a_patient_are_one_patient(tmp_path):
    small_pairs(tmp_path)
    (tmp_path / "cases.csv").write_text("case,patient\na,P1\nb,p1\n", encoding="utf-8")
    found = match_dataset(tmp_path)
    assert [case.group for case in found.cases] == ["P1", "P1"]
    assert any("'P1', 'p1' are one patient" in note for note in found.notes)


def test_a_manifest_without_labels_names_its_columns(tmp_path):
    small_pairs(tmp_path)
    (tmp_path / "my.csv").write_text("case,image,mask\na,images/a.nii.gz,labels/a.nii.gz\n", encoding="utf-8")
    with pytest.raises(DatasetError, match="no column 'label'; its columns are case, image_1, mask"):
        match_dataset(tmp_path / "my.csv")


def test_a_folder_of_labels_that_is_a_link_to_nothing_is_named(tmp_path):
    put(tmp_path / "imagesTr" / "a_0000.nii.gz")
    (tmp_path / "labelsTr").symlink_to(tmp_path / "gone")
    with pytest.raises(DatasetError, match=r"labelsTr: link to .*which is not there"):
        match_dataset(tmp_path)


def test_two_values_of_one_name_are_refused(pairs):
    (pairs / "dataset.json").write_text(
        json.dumps({"labels": {"0": "background", "1": "A", "2": "A"}}), encoding="utf-8"
    )
    with pytest.raises(DatasetError, match="the values 1, 2 have one name, 'A'"):
        match_dataset(pairs)


LISTS = {
    "decathlon": json.dumps({"training": [{"image": "images/a.nii.gz", "label": "labels/a.nii.gz"}]}),
    "nnunet": json.dumps({"dataset": {"a": {"images": ["images/a.nii.gz"], "label": "labels/a.nii.gz"}}}),
    "manifest": "case,image,label\na,images/a.nii.gz,labels/a.nii.gz\n",
}


@pytest.mark.parametrize("layout", LISTS)
def test_what_a_list_leaves_out_is_counted_and_no_lost_case(tmp_path, layout):
    small_pairs(tmp_path)
    (tmp_path / "images" / "c.nii.gz").symlink_to(tmp_path / "gone.nii.gz")
    (tmp_path / "images" / "d.unknown").write_bytes(b"x")
    (tmp_path / "images" / "notes.txt").write_text("x", encoding="utf-8")
    (tmp_path / ("cases.csv" if layout == "manifest" else "dataset.json")).write_text(LISTS[layout], encoding="utf-8")
    found = match_dataset(tmp_path)
    assert (found.layout, ids(found), found.findings) == (layout, ["a"], ())
    left = {item.what for given in found.given if given.kind == "images of images/" for item in given.passed_over}
    assert left == {"b.nii.gz", "c.nii.gz", "d.unknown"}
    assert not any(given.loses_a_case for given in found.given)


def test_folders_of_patients_are_one_count(tmp_path):
    rows = ["case,image,label"]
    for n in range(6):
        for name in ("ct", "seg", "other"):
            put(tmp_path / f"P{n}" / f"{name}.nii.gz")
        rows.append(f"c{n},P{n}/ct.nii.gz,P{n}/seg.nii.gz")
    (tmp_path / "cases.csv").write_text("\n".join(rows), encoding="utf-8")
    (given,) = match_dataset(tmp_path).given
    assert (given.kind, given.n_given, len(given.passed_over)) == ("images of 6 folders", 18, 6)


def test_a_warning_about_the_whole_dataset_is_shown_as_one(pairs):
    shown = page(CheckResult(match_dataset(pairs), (), notes=("warning: first", "second")), CheckOptions(dataset=pairs))
    table = shown.parts[0]
    assert [list(row) for row in table.rows[-2:]] == [["warning", "first"], ["note", "second"]]
