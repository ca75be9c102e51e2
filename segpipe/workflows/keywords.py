"""The Python functions: a workflow whose options are given as keywords, documented by the same notes as the command line."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, get_args

from segpipe.core.progress import SILENT
from segpipe.workflows.notes import Note, Options, note_of, types_of

_SECTION = re.compile(r"\n\n(?=(?:Raises|Returns|Notes)\n-)")


def with_keywords(
    workflow: Callable[..., Any], record: type[Options], placed: tuple[str, ...] = (), without: tuple[str, ...] = ()
) -> Any:
    """Return a function that makes the record of its keywords and calls the workflow.

    Parameters
    ----------
    workflow : callable
        Takes the record, and ``watch``.
    record : type
        What may be asked.
    placed : tuple of str
        Fields that have to be given and may be by their place; the record's arguments unless given.
    without : tuple of str
        Fields that this function does not have.
    """
    names = placed or tuple(one.name for one in fields(record) if note_of(one).argument)

    known = signature(record, names, without, required=placed)

    def public(*values: Any, watch: Any = SILENT, **asked: Any) -> Any:
        bound = known.bind(*values, **asked)
        return workflow(record(**bound.arguments), watch)

    public.__name__ = public.__qualname__ = workflow.__name__
    public.__module__ = "segpipe"
    public.__doc__ = documented(workflow, record, without)
    public.__signature__ = known  # type: ignore[attr-defined]
    return public


def signature(
    record: type[Options], placed: tuple[str, ...], without: tuple[str, ...] = (), required: tuple[str, ...] = ()
) -> inspect.Signature:
    """Return the signature of a public function: arguments by their place, the rest by name, and ``watch``."""
    kinds = types_of(record)
    first = [one for name in placed for one in fields(record) if one.name == name]
    hidden = {*placed, *without}
    rest = [one for one in fields(record) if one.name not in hidden and not note_of(one).terminal_only]
    parameters = [
        inspect.Parameter(
            one.name,
            inspect.Parameter.POSITIONAL_OR_KEYWORD if one in first else inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if one.default is MISSING or one.name in required else one.default,
            annotation=kinds[one.name],
        )
        for one in (*first, *sorted(rest, key=lambda one: one.default is not MISSING))
    ]
    watch = inspect.Parameter("watch", inspect.Parameter.KEYWORD_ONLY, default=SILENT)
    return inspect.Signature([*parameters, watch])


def documented(workflow: Callable[..., Any], record: type[Options], without: tuple[str, ...] = ()) -> str:
    """Return a workflow's documentation with its options as numpydoc parameters."""
    text = inspect.getdoc(workflow) or ""
    lines = ["Parameters", "----------"]
    for one in fields(record):
        if note_of(one).terminal_only or one.name in without:
            continue
        lines += [f"{one.name} : {_kind(types_of(record)[one.name])}", f"    {described(note_of(one))}"]
    lines += ["watch : Watch", "    Shows progress; nothing unless given."]
    about = _SECTION.split(text, maxsplit=1)
    return "\n\n".join([about[0], "\n".join(lines), *about[1:]])


def described(note: Note) -> str:
    """Return a note's text, and what is done without it."""
    return f"{note.help} Unless given: {note.unless_given}." if note.unless_given else note.help


def _kind(kind: Any) -> str:
    """Return a type in words."""
    optional = type(None) in get_args(kind)
    parts = [part for part in get_args(kind) if part is not type(None)] if optional else [kind]
    words = " or ".join(_name(part) for part in parts)
    return f"{words}, optional" if optional else words


def _name(kind: Any) -> str:
    if kind == tuple[Path, ...]:
        return "path, or several"
    if kind == tuple[str, ...]:
        return "str, or several"
    if kind is Path:
        return "path"
    choices = get_args(kind)
    if getattr(kind, "__name__", "") == "Literal" or (choices and all(isinstance(c, str) for c in choices)):
        return " or ".join(f'"{c}"' for c in choices)
    return getattr(kind, "__name__", str(kind)) if not choices else str(kind).replace("typing.", "")
