"""What a release must agree on, and the tasks that CI and newcomers share."""

import re

import pytest

from segpipe.version import __version__
from tests.release import ROOT, disagreements, main, version_of

CITATION = "title: segpipe\nversion: {}\n"


@pytest.mark.parametrize(
    ("version", "heading", "cited", "tag"),
    [
        ("0.1.0.dev5", "0.1.0 (unreleased)", "0.1.0.dev5", None),
        ("0.1.0.dev5", "0.1.0 (unreleased)", "0.1.0.dev5", "v0.1.0.dev5"),
        ("0.1.0", "0.1.0 (2027-01-31)", "0.1.0", "v0.1.0"),
        ("0.1.0", "0.1.0 (2027-01-31)", '"0.1.0"', None),
    ],
)
def test_a_release_that_agrees(version, heading, cited, tag):
    assert disagreements(version, f"# Changelog\n\n## {heading}\n", CITATION.format(cited), tag) == []


@pytest.mark.parametrize(
    ("version", "heading", "cited", "tag", "said"),
    [
        ("0.1.0", "0.1.0 (2027-01-31)", "0.1.0", "v0.2.0", "the tag is v0.2.0; expected v0.1.0"),
        ("0.1.0", "0.1.0 (2027-01-31)", "0.1.0", "0.1.0", "the tag is 0.1.0; expected v0.1.0"),
        ("0.2.0", "0.1.0 (2027-01-31)", "0.2.0", None, "names 0.1.0; expected 0.2.0"),
        ("0.2.0", "0.2.0 (unreleased)", "0.2.0", "v0.2.0", "0.2.0 is unreleased, but 0.2.0 is a release"),
        ("0.2.0.dev1", "0.2.0 (2027-01-31)", "0.2.0.dev1", None, "0.2.0.dev1 is a development version"),
        ("0.2.0", "0.2.0 - soon", "0.2.0", None, "the first heading is '## 0.2.0 - soon'"),
        ("0.2.0", "0.2.0 (2027-01-31)", "0.1.0", None, "CITATION.cff: names 0.1.0; expected 0.2.0"),
    ],
)
def test_a_disagreement_is_reported(version, heading, cited, tag, said):
    found = disagreements(
        version, f"# Changelog\n\n## {heading}\n\n## 0.0.1 (2026-01-01)\n", CITATION.format(cited), tag
    )
    assert len(found) == 1
    assert said in found[0]


def test_this_checkout_agrees(capsys):
    assert version_of((ROOT / "segpipe/version.py").read_text(encoding="utf-8")) == __version__
    assert main([f"v{__version__}"]) == 0, capsys.readouterr().out
    assert main(["v99"]) == 1


def tasks() -> list[str]:
    return re.findall(r"@nox\.session\ndef (\w+)\(", (ROOT / "noxfile.py").read_text(encoding="utf-8"))


@pytest.mark.parametrize("file", [".ci/run", "CONTRIBUTING.md", ".github/pull_request_template.md"])
def test_every_task_that_is_named_exists(file):
    text = (ROOT / file).read_text(encoding="utf-8")
    named = {word for call in re.findall(r"\bnox -s ((?:\w+ ?)+)", text) for word in call.split()}
    assert named, f"{file} names no task"
    assert named <= set(tasks())


def test_ci_runs_what_the_readme_shows():
    readme, ci = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", ".ci/run"))
    for command in re.findall(r"```sh\n(pip install .*)\n```", readme):
        assert command.replace("pip install", "pip install --quiet") in ci


def test_every_file_of_the_source_distribution_exists():
    included = re.search(r"sdist\]\ninclude = \[(.*)\]", (ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert included is not None
    assert all((ROOT / name).exists() for name in re.findall(r'"([^"]+)"', included[1]))


def test_nnunets_helpers_have_one_public_path():
    from segpipe.models import nnunet
    from segpipe.models.nnunet import fingerprint, plans

    assert nnunet.__all__ == ["plan_to_nnunet", "read_fingerprint"]
    assert nnunet.read_fingerprint is fingerprint.read_fingerprint
    assert nnunet.plan_to_nnunet is plans.plan_to_nnunet
