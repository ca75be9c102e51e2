"""The package's public names for editors and type checkers: `python tests/stub.py` writes segpipe/__init__.pyi.

The Python functions are made from records of options when they are first used, which no type checker can follow; this file says the same
in words that it can. A test compares it with the records.
"""

import inspect
from importlib import import_module
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import segpipe

TARGET = Path(segpipe.__file__).with_name("__init__.pyi")
HEAD = '"""Written by tests/stub.py from the records of options; see segpipe/workflows/options.py."""\n'
WIDER = {tuple[Path, ...]: "_Paths", tuple[str, ...]: "str | Sequence[str]", Path: "Path | str"}
"""What a Python function may be given for a field's type."""


def stub() -> str:
    """Return the text of the stub."""
    imports = {f"from segpipe.{module} import {name} as {name}" for name, module in segpipe._HOMES.items()}
    functions = [function(name, imports) for name in sorted(segpipe._FUNCTIONS)]
    imports |= {"from collections.abc import Callable, Mapping, Sequence", "from pathlib import Path"}
    imports |= {"from typing import Literal", "from segpipe.version import __version__ as __version__"}
    names = ", ".join(f'"{name}"' for name in segpipe.__all__)
    parts = [HEAD, *sorted(imports), "_Paths = Path | str | Sequence[Path | str]", f"__all__ = [{names}]", *functions]
    return "\n".join(parts) + "\n"


def function(name: str, imports: set[str]) -> str:
    """Return a public function with its types."""
    module, workflow, _ = segpipe._FUNCTIONS[name]
    result = get_type_hints(getattr(import_module(f"segpipe.{module}"), workflow))["return"]
    parameters, keyword = [], False
    for one in getattr(segpipe, name).__signature__.parameters.values():
        if one.kind is inspect.Parameter.KEYWORD_ONLY and not keyword:
            parameters.append("*")
            keyword = True
        kind = "Watch" if one.name == "watch" else written(one.annotation, imports, given=True)
        parameters.append(f"{one.name}: {kind}" + ("" if one.default is inspect.Parameter.empty else " = ..."))
    return f"def {name}({', '.join(parameters)}) -> {written(result, imports)}: ..."


def written(kind: Any, imports: set[str], *, given: bool = False) -> str:
    """Return a type as it is written, and note what has to be imported for it."""
    if given and kind in WIDER:
        return WIDER[kind]
    if get_origin(kind) in (Union, UnionType):
        return " | ".join(written(part, imports, given=given) for part in get_args(kind))
    if get_origin(kind) is Literal:
        return f"Literal[{', '.join(map(repr, get_args(kind)))}]"
    if kind is NoneType:
        return "None"
    if kind is Ellipsis:
        return "..."
    if isinstance(kind, list):
        return f"[{', '.join(written(part, imports) for part in kind)}]"
    if get_args(kind):
        parts = ", ".join(written(part, imports) for part in get_args(kind))
        return f"{get_origin(kind).__name__}[{parts}]"
    if kind.__module__.startswith("segpipe"):
        imports.add(f"from {kind.__module__} import {kind.__name__} as {kind.__name__}")
    return str(kind.__name__)


if __name__ == "__main__":
    TARGET.write_text(stub(), encoding="utf-8")
