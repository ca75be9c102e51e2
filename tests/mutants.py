"""Seeded mutants of the package, each run against the tests that reach its line.

    pytest tests/unit -n 0 --dist no --cov --cov-context=test --cov-report=     # which test reaches which line: .coverage
    python tests/mutants.py --data .coverage --seed 0 --count 40 --output mutants.jsonl

Rooms are drawn in turn, so that each is tried; in a room a line, and on it a change: a comparison, an operator, ``and``
and ``or``, a ``not``, a constant or what is returned. A mutant is killed when a test fails, and survives when all that
reach its line pass. It is written into a copy of the package, never into the working tree.
"""

import argparse
import ast
import copy
import json
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
COMPARISONS = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
}  # fmt: skip
OPERATORS = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult,
    ast.Pow: ast.Mult,
}  # fmt: skip


@dataclass(frozen=True)
class Mutant:
    """A change of one file."""

    file: str
    line: int
    change: str
    source: str
    tests: tuple[str, ...]


def changed(node: ast.AST) -> tuple[str, ast.AST] | None:
    """What a node is turned into, and the change in words; None where there is nothing to change."""
    new = copy.deepcopy(node)
    match new:
        case ast.Compare(ops=[op, *_]) if type(op) in COMPARISONS:
            new.ops[0] = COMPARISONS[type(op)]()
        case ast.BinOp(op=op) if type(op) in OPERATORS and not isinstance(new.left, ast.Constant | ast.JoinedStr):
            new.op = OPERATORS[type(op)]()
        case ast.BoolOp(op=op):
            new.op = ast.Or() if isinstance(op, ast.And) else ast.And()
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return "not removed", operand
        case ast.Constant(value=bool(value)):
            new.value = not value
        case ast.Constant(value=int(value)) | ast.Constant(value=float(value)):
            new.value = value + 1
        case ast.Return(value=value) if value is not None and not isinstance(value, ast.Constant):
            new.value = ast.Constant(None)
        case _:
            return None
    return f"{ast.unparse(node)[:60]} -> {ast.unparse(new)[:60]}", new


class _Swap(ast.NodeTransformer):
    def __init__(self, old: ast.AST, new: ast.AST) -> None:
        self.old, self.new = old, new

    def visit(self, node: ast.AST) -> ast.AST:
        return ast.copy_location(self.new, node) if node is self.old else self.generic_visit(node)


def nodes_in_functions(tree: ast.Module) -> list[ast.AST]:
    """Nodes that can be changed and run when a function is called; annotations, defaults and messages aside."""
    left_out: set[int] = set()
    inside: list[ast.AST] = []
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef):
            left_out |= {
                id(n)
                for part in (function.args, function.returns, *function.decorator_list)
                if part
                for n in ast.walk(part)
            }
            inside += [n for statement in function.body for n in ast.walk(statement)]
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise | ast.JoinedStr | ast.AnnAssign):
            left_out |= {id(n) for n in ast.walk(node)}
    unique = {id(n): n for n in inside if id(n) not in left_out}
    return [n for n in unique.values() if changed(n) is not None]


def reached(data: Path, package: Path) -> dict[str, dict[int, set[str]]]:
    """Tests that reach each line of each file: of an ordinary or a branch measurement with contexts."""
    base = sqlite3.connect(f"file:{data}?mode=ro", uri=True)
    contexts = dict(base.execute("select id, context from context"))
    files = {number: Path(path) for number, path in base.execute("select id, path from file")}
    found: dict[str, dict[int, set[str]]] = {}

    def add(number: int, context: int, line: int) -> None:
        test = contexts[context].partition("|")[0]
        if test and line > 0 and files[number].is_relative_to(package):
            found.setdefault(str(files[number].relative_to(package)), {}).setdefault(line, set()).add(test)

    for number, context, _, line in base.execute("select file_id, context_id, fromno, tono from arc"):
        add(number, context, line)
    from coverage.numbits import numbits_to_nums

    for number, context, bits in base.execute("select file_id, context_id, numbits from line_bits"):
        for line in numbits_to_nums(bits):
            add(number, context, line)
    return found


def draw(package: Path, lines: dict[str, dict[int, set[str]]], seed: int, count: int) -> list[Mutant]:
    """Draw mutants, room after room."""
    rng = random.Random(seed)
    rooms: dict[str, list[str]] = {}
    for file in sorted(lines):
        rooms.setdefault(file.split("/")[0] if "/" in file else "(root)", []).append(file)
    order = sorted(rooms)
    rng.shuffle(order)
    mutants: list[Mutant] = []
    tried = 0
    while len(mutants) < count and tried < 50 * count:
        file = rng.choice(rooms[order[tried % len(order)]])
        tried += 1
        tree = ast.parse((package / file).read_text(encoding="utf-8"))
        able = [n for n in nodes_in_functions(tree) if lines[file].get(getattr(n, "lineno", 0))]
        if not able:
            continue
        node = rng.choice(able)
        line, (change, new) = node.lineno, changed(node)
        source = ast.unparse(ast.fix_missing_locations(_Swap(node, new).visit(tree)))
        if all((m.file, m.line, m.change) != (file, line, change) for m in mutants):
            mutants.append(Mutant(file, line, change, source, tuple(sorted(lines[file][line]))))
    return mutants


def verdict(mutant: Mutant, package: Path, tests_root: Path, most: int, rng: random.Random) -> str:
    """Run the tests that reach the line against a copy of the package: killed, survived or endless."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(
            tests_root, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(".git", "__pycache__", ".coverage*")
        )
        shutil.copytree(
            package, Path(folder) / "segpipe", dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__")
        )
        (Path(folder) / "segpipe" / mutant.file).write_text(mutant.source, encoding="utf-8")
        # Where a line is reached by very many tests, as many as can be run, by a seeded draw.
        chosen = mutant.tests if len(mutant.tests) <= most else sorted(rng.sample(mutant.tests, most))
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-n", "0", "-p", "no:cacheprovider", *chosen]
        try:
            done = subprocess.run(
                command, cwd=folder, env=os.environ | {"PYTHONPATH": folder, "OMP_NUM_THREADS": "1"}, capture_output=True, timeout=900,
                check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return "killed (endless)"
        return {0: "survived", 1: "killed", 2: "killed"}.get(done.returncode, f"no verdict ({done.returncode})")


def main() -> None:
    """Draw, run, and write one line of JSON a mutant."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=ROOT, help="folder that holds segpipe/ and tests/")
    parser.add_argument(
        "--data", type=Path, required=True, help="data file of coverage.py with a context for each test"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=40)
    parser.add_argument("--most-tests", type=int, default=200, help="tests that are run against one mutant")
    parser.add_argument("--output", type=Path, default=Path("mutants.jsonl"))
    asked = parser.parse_args()
    package = (asked.root / "segpipe").resolve()
    mutants = draw(package, reached(asked.data, package), asked.seed, asked.count)
    with asked.output.open("w", encoding="utf-8") as file:
        for number, mutant in enumerate(mutants):
            found = verdict(mutant, package, asked.root.resolve(), asked.most_tests, random.Random(number))
            row = {
                "file": mutant.file,
                "line": mutant.line,
                "change": mutant.change,
                "tests": len(mutant.tests),
                "verdict": found,
            }
            print(json.dumps(row), file=file, flush=True)
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
