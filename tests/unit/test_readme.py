"""The README and the docs keep their word: commands parse, files that are named exist."""

import re
from pathlib import Path

import pytest

from tests.helpers.command_line import segpipe

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def commands_in(page: Path) -> list[list[str]]:
    blocks = re.findall(r"```(?:sh|bash|console)\n(.*?)```", page.read_text(), flags=re.S)
    lines = [line.split("#")[0].strip() for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    calls = [part.strip() for line in lines for part in line.split("&&")]
    return [call.split() for call in calls if call.startswith("segpipe ")]


CALLS = [pytest.param(call, id=" ".join(call)) for page in PAGES for call in commands_in(page)]


@pytest.mark.parametrize("call", CALLS)
def test_every_command_and_option_exists(call, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    shown = segpipe(call[1], "--help")
    assert shown.returncode == 0, f"no command {call[1]}"
    for word in call[2:]:
        if word.startswith("--"):
            assert word in shown.stdout, f"segpipe {call[1]} has no {word}"


def test_the_readme_shows_commands():
    assert len(commands_in(ROOT / "README.md")) >= 4


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_named_modules_exist(page):
    for name in re.findall(r"`(segpipe/[\w/]+\.py|tests/[\w/]+\.py)`", page.read_text()):
        assert (ROOT / name).is_file(), name
