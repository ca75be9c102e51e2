"""Where each test of an older commit is now: `python tests/moved.py COMMIT` writes tests/MOVED.tsv and fails where one is missing.

A test is found by the name of its function, in the file of its own name if it is there. RENAMED holds those that were
taken over by a test of another name.
"""

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
RENAMED: dict[str, str] = {}
"""Old test (file::name) and the one that took over its law."""


def tests_in(source: str) -> list[str]:
    """Names of the test functions of a file; those of a class with its name before."""
    found = []
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            found.append(node.name)
        elif isinstance(node, ast.ClassDef):
            found += [
                f"{node.name}::{inner.name}"
                for inner in node.body
                if isinstance(inner, ast.FunctionDef) and inner.name.startswith("test_")
            ]
    return found


def old_tests(commit: str) -> list[str]:
    """Every test function of a commit."""
    listed = _git("ls-tree", "-r", "--name-only", commit, "tests").splitlines()
    files = [name for name in listed if Path(name).name.startswith("test_") and name.endswith(".py")]
    return [f"{name}::{test}" for name in files for test in tests_in(_git("show", f"{commit}:{name}"))]


def new_tests() -> list[str]:
    """Every test function of the working tree."""
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    return [f"{p.relative_to(ROOT)}::{test}" for p in files for test in tests_in(p.read_text(encoding="utf-8"))]


def places(old: str, now: list[str]) -> list[str]:
    """New places of an old test; several where its parameters were divided between tiers."""
    old = RENAMED.get(old, old)
    file, test = old.split("::", 1)
    same_file = [name for name in now if name.endswith(f"/{Path(file).name}::{test}")]
    return same_file or [name for name in now if name.split("::", 1)[1] == test]


def main(commit: str) -> int:
    """Write the table."""
    now = new_tests()
    rows = [(old, places(old, now)) for old in old_tests(commit)]
    lines = [f"{old}\t{', '.join(found) or 'MISSING'}" for old, found in rows]
    (ROOT / "tests" / "MOVED.tsv").write_text("\n".join(["old\tnew", *lines]) + "\n", encoding="utf-8")
    missing = [old for old, found in rows if not found]
    print(f"{len(rows)} tests, {len(missing)} missing: {missing}")
    return 1 if missing else 0


def _git(*words: str) -> str:
    return subprocess.run(
        ["git", "-C", ROOT, *words], capture_output=True, text=True, check=True, encoding="utf-8"
    ).stdout


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
