"""Counts of the package's structure, from its syntax trees: `python tests/house.py [FOLDER_OF_THE_PACKAGE]` prints them as JSON.

Statements are counted, not lines. A circle is a group of sibling modules or packages that import each other, directly or through one
another.
"""

import ast
import json
import sys
from collections import defaultdict
from pathlib import Path

POOL = {"jobs", "jobs_limit", "limit", "workers", "n_workers"}


def modules_of(package: Path) -> dict[str, ast.Module]:
    """Syntax tree of every module, by its dotted name."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = (package.name, *path.relative_to(package).with_suffix("").parts)
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = ast.parse(path.read_text(encoding="utf-8"))
    return found


def statements(tree: ast.AST) -> int:
    """Number of statements, docstrings aside."""
    docstrings = sum(
        isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        for node in ast.walk(tree)
    )
    return sum(isinstance(node, ast.stmt) for node in ast.walk(tree)) - docstrings


def functions(tree: ast.AST) -> list[ast.FunctionDef]:
    """Every function and method."""
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]


def parameters(function: ast.FunctionDef, *, options: bool = True) -> list[str]:
    """Names of a function's parameters, ``self`` and ``cls`` aside; without the keyword options of a public function on request."""
    args = function.args
    if not options and (not function.name.startswith("_") or function.name == "__init__"):
        return [a.arg for a in (*args.posonlyargs, *args.args) if a.arg not in ("self", "cls")]
    names = [a.arg for a in (*args.posonlyargs, *args.args, *args.kwonlyargs)]
    return [name for name in names if name not in ("self", "cls")]


def imports(name: str, tree: ast.Module, known: set[str]) -> set[str]:
    """Modules of the package that a module imports, wherever in it."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {
                f"{node.module}.{alias.name}" if f"{node.module}.{alias.name}" in known else node.module
                for alias in node.names
            }
    return (found & known) - {name}


def circles(modules: dict[str, ast.Module]) -> list[list[str]]:
    """Groups of siblings that import each other."""
    known = set(modules)
    arrows: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for name, tree in modules.items():
        for other in imports(name, tree, known):
            ours, theirs = name.split("."), other.split(".")
            depth = next((n for n, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), None)
            if depth is not None:
                above = ".".join(ours[:depth])
                arrows[above][".".join(ours[: depth + 1])].add(".".join(theirs[: depth + 1]))
    found = []
    for graph in arrows.values():
        reached = {node: _reached(graph, node) for node in graph}
        together = {frozenset({n, *(m for m in reached[n] if n in reached.get(m, set()))}) for n in graph}
        found += [sorted(group) for group in together if len(group) > 1]
    return sorted(found)


def _reached(graph: dict[str, set[str]], start: str) -> set[str]:
    seen: set[str] = set()
    ahead = [start]
    while ahead:
        for node in graph.get(ahead.pop(), set()) - seen:
            seen.add(node)
            ahead.append(node)
    return seen


def counts(package: Path) -> dict[str, object]:
    """Every count, by its name."""
    modules = modules_of(package)
    inner = sorted({p.parent for p in package.rglob("*.py")} - {package})
    loose = [p.stem for p in package.glob("*.py") if p.name != "__init__.py"]
    all_functions = [(f"{name}.{f.name}", parameters(f)) for name, tree in modules.items() for f in functions(tree)]
    widest = max(all_functions, key=lambda found: len(found[1]))
    without = [
        (f"{name}.{f.name}", parameters(f, options=False)) for name, tree in modules.items() for f in functions(tree)
    ]
    bare = max(without, key=lambda found: len(found[1]))
    return {
        "rooms": len(inner),
        "rooms and loose root modules": len(inner) + len(loose),
        "loose root modules": len(loose),
        "modules": len(modules),
        "circles": circles(modules),
        "functions that take tta": sum("tta" in names for _, names in all_functions),
        "functions that take device": sum("device" in names for _, names in all_functions),
        "functions that take a pool": sum(bool(POOL & set(names)) for _, names in all_functions),
        "names of the pool": sorted(POOL & {name for _, names in all_functions for name in names}),
        "widest function": f"{widest[0]}: {len(widest[1])} parameters",
        "widest function, keyword options of public functions aside": f"{bare[0]}: {len(bare[1])} parameters",
        "functions with over 6 parameters": sum(len(names) > 6 for _, names in all_functions),
        "statements in cli": sum(statements(t) for name, t in modules.items() if ".cli" in name),
        "statements": sum(statements(tree) for tree in modules.values()),
    }


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[1] / "segpipe"
    print(json.dumps(counts(folder), indent=1))
