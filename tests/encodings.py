"""Calls that open text in the system's own encoding, which is another one on Windows, found in a syntax tree."""

import ast
import re
from collections.abc import Iterator

POSITIONS = {
    "open": (0, 1), "fdopen": (1, None), "read_text": (None, 0), "write_text": (None, 1), "TextIOWrapper": (None, 1),
    "NamedTemporaryFile": (0, None), "TemporaryFile": (0, None), "FileHandler": (None, 2), "RotatingFileHandler": (None, 4),
}  # fmt: skip
"""By the name of what is called: which positional argument is the mode, and which is the encoding. Of ``open`` as a method of a path."""
TEXT_UNLESS_TOLD = ("open", "fdopen", "read_text", "write_text", "TextIOWrapper", "FileHandler", "RotatingFileHandler")
"""What opens text where no mode is given; the temporary files do not."""
PROCESSES = ("run", "Popen", "check_output", "check_call", "call", "getoutput")
OTHER_DOORS = (
    "os",
    "blosc2",
    "Image",
    "Project",
    "webbrowser",
    "gzip",
    "zipfile",
    "tarfile",
    "wave",
    "nib",
    "tokenize",
)
"""Whose ``open`` is no path's."""


def without_encoding(tree: ast.AST) -> Iterator[ast.Call]:
    """Yield every call that reads or writes text and states no encoding."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and (_opens_text(node) or _talks_in_text(node)):
            yield node


def with_lines_of_the_system(tree: ast.AST) -> Iterator[ast.Call]:
    """Yield every call that writes text and leaves the ends of lines to the system, where Windows writes two characters."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and "encoding" in (given := _keywords(node)) and "newline" not in given:
            modes = [*node.args, given.get("mode")]
            writes = any(isinstance(m, ast.Constant) and re.fullmatch("[wax][t+]*", str(m.value)) for m in modes)
            if _name(node) == "write_text" or (writes and _name(node) in POSITIONS):
                yield node


def _name(call: ast.Call) -> str:
    return getattr(call.func, "attr", None) or getattr(call.func, "id", "")


def _keywords(call: ast.Call) -> dict[str | None, ast.expr]:
    return {keyword.arg: keyword.value for keyword in call.keywords}


def _opens_text(call: ast.Call) -> bool:
    name, keywords = _name(call), _keywords(call)
    if name not in POSITIONS or "encoding" in keywords:
        return False
    mode_at, encoding_at = POSITIONS[name]
    of_a_path = isinstance(call.func, ast.Attribute)
    if name == "open":
        if of_a_path and getattr(call.func.value, "id", "") in OTHER_DOORS:
            return False
        # The function takes the path first, and the buffer's size before the encoding, as the method does.
        mode_at, encoding_at = (0, 2) if of_a_path else (1, 3)
    if encoding_at is not None and len(call.args) > encoding_at:
        return False
    given = keywords.get("mode") or (call.args[mode_at] if mode_at is not None and len(call.args) > mode_at else None)
    if given is None:
        return name in TEXT_UNLESS_TOLD
    modes = [part.value for part in ast.walk(given) if isinstance(part, ast.Constant) and isinstance(part.value, str)]
    return not modes or any("b" not in mode for mode in modes)


def _talks_in_text(call: ast.Call) -> bool:
    keywords = _keywords(call)
    return (
        _name(call) in PROCESSES
        and bool({"text", "universal_newlines", "errors"} & set(keywords))
        and "encoding" not in keywords
    )
