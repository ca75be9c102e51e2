"""The README and the docs keep their word: commands parse, files that are named exist."""

import ast
import re
from pathlib import Path

import pytest

from tests.helpers.command_line import segpipe

ROOT = Path(__file__).parents[2]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]


def commands_in(page: Path) -> list[list[str]]:
    blocks = re.findall(r"```(?:sh|bash|console)\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.S)
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
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_named_modules_exist(page):
    for name in re.findall(r"`((?:segpipe|tests)/[\w/]+\.py)`", page.read_text(encoding="utf-8")):
        # The placeholder of a file that a reader will write.
        assert (ROOT / name).is_file() or "/NAME." in name, name


def imports_in(page: Path) -> list[str]:
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.S)
    nodes = [node for block in blocks for node in ast.walk(ast.parse(block))]
    return [ast.unparse(node) for node in nodes if isinstance(node, ast.Import | ast.ImportFrom)]


@pytest.mark.parametrize("line", sorted({line for page in PAGES for line in imports_in(page)}))
def test_python_imports_in_the_docs_work(line):
    exec(compile(line, "docs", "exec"), {})


def test_the_architecture_names_every_module():
    tree = (ROOT / "docs/architecture.md").read_text(encoding="utf-8").split("segpipe/\n", 1)[1].split("```")[0]
    words = set(re.findall(r"\w+", tree))
    modules = {p for p in (ROOT / "segpipe").rglob("*.py") if p.parent.name != "cli"}
    known = words | {"__init__", "schema"}
    assert (
        sorted(
            str(p.relative_to(ROOT)) for p in modules if p.stem not in known or p.parent.name not in {*words, "segpipe"}
        )
        == []
    )
