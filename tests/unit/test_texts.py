"""Rules of docs/writing.md that a machine can check."""

import re

import pytest

from segpipe.core.text import rounded
from tests.release import ROOT

# Packages whose docstrings follow the page; the others join when theirs do.
PACKAGES = (
    "io", "dataset", "planning", "networks", "losses", "augment", "metrics", "preprocessing", "postprocessing",
    "crossvalidation",
)  # fmt: skip
FRAGMENT = re.compile(r'^\s+Of |"""Of ')


@pytest.mark.parametrize("package", PACKAGES)
def test_the_doc_of_a_parameter_stands_alone(package):
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in sorted((ROOT / "segpipe" / package).rglob("*.py"))
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if FRAGMENT.search(line)
    ]
    assert found == []


@pytest.mark.parametrize(
    ("value", "text"),
    [(1000.0, "1,000"), (148000.0, "148,000"), (20.63, "20.6"), (0.00123456, "0.00123"), (999.9, "1,000")],
)
def test_large_numbers_are_no_powers_of_ten(value, text):
    assert rounded(value) == text
