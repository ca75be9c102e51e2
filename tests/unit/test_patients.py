import pytest

from segpipe.dataset.patients import describe_grouping, join_table, joined_groups, shared_beginning, without_patients
from segpipe.dataset.tables import read_table
from segpipe.errors import DatasetError

CASES = [f"{n:03d}" for n in range(1, 11)]


def joined(tmp_path, text, cases=CASES):
    (tmp_path / "cases.csv").write_text(text, encoding="utf-8")
    return join_table(read_table(tmp_path / "cases.csv"), cases, cases)


def table(rows, header="case,patient"):
    return header + "\n" + "\n".join(f"{case},P{n // 2}" for n, case in enumerate(rows)) + "\n"


def test_a_table_gives_patients(tmp_path):
    found = joined(tmp_path, table(CASES))
    assert found.columns["001"] == {"patient": "P0"}
    assert not found.given.passed_over


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([str(n) for n in range(1, 11)], "none of its 10 rows is of a case.*'1' looks like case '001'"),
        ([f"{c}.nii.gz" for c in CASES], "'001.nii.gz' looks like case '001'"),
        ([f"{c}_0000" for c in CASES], "'001_0000' looks like case '001'"),
        (CASES[:5], "5 of 10 cases have no row, such as '006'"),
        ([*CASES[:9], "10"], "1 of 10 cases have no row, such as '010' .'10' looks like case '010'"),
        ([*CASES, "001"], "case '001' stands twice, the second time in row 11"),
        (["x", "y"], "none of its 2 rows is of a case of the dataset; its first is of 'x'"),
    ],
)
def test_a_table_that_does_not_fit_is_an_error_with_an_example(tmp_path, rows, message):
    with pytest.raises(DatasetError, match=message):
        joined(tmp_path, table(rows))


def test_a_table_without_cases_names_its_columns(tmp_path):
    with pytest.raises(DatasetError, match="no column 'case'; its columns are scan, patient"):
        joined(tmp_path, table(CASES, "scan,patient"))


def test_patients_of_a_part_of_the_cases_are_an_error(tmp_path):
    with pytest.raises(DatasetError, match="1 of 10 cases have no patient, such as '003'"):
        joined(tmp_path, table(CASES).replace("003,P1", "003,"))


def test_rows_of_other_cases_are_counted(tmp_path):
    found = joined(tmp_path, table([*CASES, "far", "away"]))
    assert [p.what for p in found.given.passed_over] == ["far", "away"]
    assert not found.given.loses_a_case


def test_a_table_of_sites_may_lack_a_row_and_says_so(tmp_path):
    found = joined(tmp_path, table(CASES[:9], "case,site"))
    assert found.notes[0] == "cases.csv: 1 of 10 cases have no row, such as '010'"


@pytest.mark.parametrize(
    ("text", "note"),
    [
        (
            table(CASES, "case,Klinikfall"),
            "there is no column 'patient'; its columns are case, Klinikfall; cases are not kept",
        ),
        ("case;patient;site\n" + "\n".join(f"{c};;A" for c in CASES), "the column 'patient' is empty; its columns are"),
    ],
)
def test_a_table_that_names_no_patient_says_so(tmp_path, text, note):
    (line,) = joined(tmp_path, text).notes
    assert note in line


def test_a_manifest_need_not_name_patients_but_may_seem_to(tmp_path):
    for header, said in (("case,image,site", 0), ("case,image,Klinikpatient", 1), ("case,image,patient", 0)):
        (tmp_path / "cases.csv").write_text(f"{header}\na,a.nii.gz,7\n", encoding="utf-8")
        assert len(without_patients(read_table(tmp_path / "cases.csv"), holds_images=True)) == said


def test_how_cases_are_grouped_is_one_line():
    assert describe_grouping({"a": "p", "b": "p", "c": "q"}, "cases.csv") == ["3 cases of 2 patients by cases.csv"]
    sessions = {f"sub-{s}_ses-{t}": f"sub-{s}_ses-{t}" for s, n in (("08", 3), ("09", 2)) for t in range(n)}
    (line,) = describe_grouping(sessions, "")
    assert line.startswith("5 cases, each case by itself; 3 ids begin with sub-08")
    assert describe_grouping({"a": "a", "b": "b"}, "") == ["2 cases, each case by itself"]
    assert (
        describe_grouping({"a": "a", "b": "a"}, "", [("a", "b")])[1]
        == "a, b have equal images and are kept on one side"
    )


@pytest.mark.parametrize(
    ("cases", "found"),
    [
        (["p1_a", "p1_b", "p2_a"], ("p1", 2)),
        (["p1-a", "p1-b", "p2-a"], ("p1", 2)),
        (["liver_1", "liver_2", "liver_3"], None),
        (["a", "b", "c"], None),
        (["sub-01_ses-1_T1w", "sub-01_ses-2_T1w", "sub-02_ses-1_T1w", "sub-02_ses-2_T1w"], ("sub-01", 2)),
        (["x1_ses-1_a", "x1_ses-2_a", "x2_ses-1_a"], ("x1", 2)),
        (["P01_2019_T1", "P01_2020_T1", "P02_2020_T1"], ("P01", 2)),
        (["p1a", "p1b", "p2a", "p2b"], ("p1", 2)),
        (["P01.1", "P01.2", "P02.1"], ("P01", 2)),
        (["P01T1", "P01T2", "P02T1"], ("P01", 2)),
        ([f"case_{n}" for n in range(12)], None),
        ([f"hippocampus_{n:03d}" for n in range(12)], None),
        ([f"BraTS20_Training_{n:03d}" for n in range(12)], None),
        ([f"case{n}" for n in range(12)], None),
        ([f"sub-{n:02d}_T1w" for n in range(12)], None),
    ],
)
def test_ids_that_look_like_several_scans(cases, found):
    assert shared_beginning(cases) == found


def test_equal_images_join_all_that_belongs_to_either():
    groups = {"a": "p", "b": "p", "c": "q", "d": "q", "e": "e"}
    assert joined_groups(groups, [("b", "c")]) == {"a": "p", "b": "p", "c": "p", "d": "p", "e": "e"}
    assert joined_groups(groups, []) == groups
    assert len(set(joined_groups(groups, [("a", "c"), ("d", "e")]).values())) == 1
