import pytest

from segpipe.dataset.spelling import one_spelling, with_one_spelling


@pytest.mark.parametrize(
    "names", [["P1", "p1"], ["P1", " P 1"], ["3", "3.0"], ["Müller", "MÜLLER"], ["P1", "P1\u00a0"]]
)
def test_spellings_of_one_patient(names):
    known, (line,) = one_spelling(names)
    assert len(set(known.values())) == 1
    assert all(repr(name) in line for name in names)


@pytest.mark.parametrize("names", [["P2", "P02"], ["3", "03"], ["P-1", "P1"]])
def test_names_that_look_alike_stay_apart_with_a_warning(names):
    known, (line,) = one_spelling(names)
    assert len(set(known.values())) == 2
    assert line.startswith("warning")
    assert all(repr(name) in line for name in names)


def test_other_names_say_nothing():
    names = ["P1", "P10", "P11", "100", "10", "1.5", "15", "P1.0"]
    assert one_spelling(names) == ({name: name for name in names}, [])


def test_the_patients_of_cases_have_one_spelling():
    spelled, lines = with_one_spelling({"a": {"patient": "P1", "site": "x"}, "b": {"patient": "p1"}, "c": {}})
    assert spelled == {"a": {"patient": "P1", "site": "x"}, "b": {"patient": "P1"}, "c": {}}
    assert len(lines) == 1
