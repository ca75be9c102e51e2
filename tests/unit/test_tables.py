import json

import pytest

from segpipe.dataset.tables import read_json, read_table
from segpipe.errors import DatasetError

PLAIN = "case,image,label,patient\n001,a/x.nii.gz,a/y.nii.gz,P 1\n002,b/x.nii.gz,b/y.nii.gz,P 2\n"
CELLS = [
    {"case": "001", "image_1": "a/x.nii.gz", "label": "a/y.nii.gz", "patient": "P 1"},
    {"case": "002", "image_1": "b/x.nii.gz", "label": "b/y.nii.gz", "patient": "P 2"},
]


def cells(path):
    return [row.cells for row in read_table(path).rows]


@pytest.mark.parametrize(
    "content",
    [
        PLAIN.encode(),
        PLAIN.encode("utf-8-sig"),
        PLAIN.encode("utf-16"),
        PLAIN.encode("utf-8-sig").replace(b"\n", b"\r\n"),
        PLAIN.replace("\n", "\r").encode(),
        PLAIN.replace(",", ";").encode(),
        PLAIN.replace(",", "\t").encode(),
        PLAIN.replace(",", "\t").encode("utf-16"),
        PLAIN.replace(",", "|").encode(),
        ("sep=;\r\n" + PLAIN.replace(",", ";")).encode(),
        PLAIN.replace(",", " , ").encode(),
        (PLAIN + ",,,\n,,,\n\n").encode(),
        ("\n" + PLAIN).encode(),
        PLAIN.replace("case,image,label,patient", "Case,Image,LABEL,Patient").encode(),
        PLAIN.replace("case,image,label,patient", "Case ID,image_1,Label_1,patient").encode(),
        PLAIN.replace("P 1", '"P 1"').replace("001", '"001"').encode(),
    ],
)
def test_a_table_is_read_as_spreadsheets_save_it(tmp_path, content):
    (tmp_path / "cases.csv").write_bytes(content)
    assert cells(tmp_path / "cases.csv") == CELLS


@pytest.mark.parametrize(
    "header",
    ["PatientID", "patient_id", "Patient ID", "subject", "Subject_ID", "participant_id", "Patientennummer", "Patienten-ID",
     "Patient (ID)", "Patient #", "Patient No.", "patients", "MRN", "pid", "Paciente", "subject_key", "ID Patient", "Proband"],
)  # fmt: skip
def test_patients_by_another_word(tmp_path, header):
    (tmp_path / "cases.csv").write_text(f"case,{header}\n001,P1\n002,n/a\n", encoding="utf-8")
    table = read_table(tmp_path / "cases.csv")
    assert [row.cells["patient"] for row in table.rows] == ["P1", ""]
    assert "patient" in table.columns
    # The column keeps its own name too, for --group-by.
    assert table.rows[0].cells[header] == "P1"


def test_patient_is_believed_before_another_word(tmp_path):
    (tmp_path / "cases.csv").write_text("case,subject,patient\n001,S1,P1\n", encoding="utf-8")
    assert cells(tmp_path / "cases.csv") == [{"case": "001", "subject": "S1", "patient": "P1"}]


@pytest.mark.parametrize("header", ["patient_age", "person_years", "patient_sex", "impatient", "subjective score"])
def test_what_is_said_of_a_patient_names_none(tmp_path, header):
    (tmp_path / "cases.csv").write_text(f"case;{header}\n001;P1\n", encoding="utf-8")
    assert "patient" not in read_table(tmp_path / "cases.csv").columns


def test_the_fuller_of_two_columns_of_patients_is_used(tmp_path):
    (tmp_path / "cases.csv").write_text("case,patient,mrn\n001,,17\n002,,17\n", encoding="utf-8")
    assert [row.cells["patient"] for row in read_table(tmp_path / "cases.csv").rows] == ["17", "17"]


def test_an_index_without_a_name_is_left_out(tmp_path):
    (tmp_path / "cases.csv").write_text(",case,patient\n0,001,P1\n", encoding="utf-8")
    assert cells(tmp_path / "cases.csv") == [{"case": "001", "patient": "P1"}]


@pytest.mark.parametrize("empty", ["NA", "n/a", "None", "nan", "-", "#N/A", "#NV"])
def test_words_for_nothing_are_empty_cells(tmp_path, empty):
    (tmp_path / "cases.csv").write_text(
        f"case;image;image_2;patient;site\nx;a.nii.gz;{empty};{empty};{empty}\n", encoding="utf-8"
    )
    expected = {"case": "x", "image_1": "a.nii.gz", "image_2": "", "patient": "", "site": ""}
    assert cells(tmp_path / "cases.csv") == [expected]


def test_decimal_commas_stay_in_their_cell(tmp_path):
    (tmp_path / "cases.csv").write_text("case;age;dose\n001;63,5;1,25\n", encoding="utf-8")
    assert cells(tmp_path / "cases.csv") == [{"case": "001", "age": "63,5", "dose": "1,25"}]
    (tmp_path / "quoted.csv").write_text('case,age\n001,"63,5"\n', encoding="utf-8")
    assert cells(tmp_path / "quoted.csv") == [{"case": "001", "age": "63,5"}]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("case,age\n001,63,5\n", "row 1 has 3 cells, the header 2"),
        ("case,patient,Patient\n001,a,b\n", "patient, Patient have one meaning"),
        ("case,image,image_1\n001,a,b\n", "image, image_1 have one meaning"),
        ("case,image_1,image_3\n001,a,b\n", "image_1, image_3; expected"),
        ("case,age,patient,\n001,63,5,P1\n", "row 1 has 'P1' in column 4, which has no name"),
        ("case,subject,patient\n001,S1,P1\n002,S1,P2\n", "subject and patient both name patients"),
        ("case,a,a\n001,1,2\n", "a, a have one meaning"),
    ],
)
def test_a_table_that_means_two_things_is_refused(tmp_path, content, message):
    (tmp_path / "cases.csv").write_text(content, encoding="utf-8")
    with pytest.raises(DatasetError, match=message):
        read_table(tmp_path / "cases.csv")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_json_of_any_encoding(tmp_path, encoding):
    (tmp_path / "cases.json").write_bytes(json.dumps([{"Case": 1, "image": None, "Image_2": "ü"}]).encode(encoding))
    assert cells(tmp_path / "cases.json") == [{"case": "1", "image_1": "", "image_2": "ü"}]
    assert read_json(tmp_path / "cases.json")[0]["Image_2"] == "ü"


def test_rows_keep_their_place_in_the_file(tmp_path):
    (tmp_path / "cases.csv").write_text("case,patient\n,\n001,a\n", encoding="utf-8")
    assert [row.number for row in read_table(tmp_path / "cases.csv").rows] == [2]


def test_json_in_which_a_name_has_two_values_is_refused(tmp_path):
    (tmp_path / "dataset.json").write_text('{"labels": {"background": 0, "A": 1, "A": 2}}', encoding="utf-8")
    with pytest.raises(DatasetError, match="'A' stands twice in one object, with 1 and 2"):
        read_json(tmp_path / "dataset.json")
    (tmp_path / "dataset.json").write_text('{"A": 1, "A": 1}', encoding="utf-8")
    assert read_json(tmp_path / "dataset.json") == {"A": 1}
