"""Rules of docs/writing.md that a machine can check."""

import re

import pytest

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
