"""Records of options as commands: each field's note becomes an option of the command line."""

import inspect
from collections.abc import Callable
from dataclasses import MISSING, Field, dataclass, fields
from functools import partial
from importlib import import_module
from keyword import iskeyword
from pathlib import Path
from typing import Annotated, Any, Optional, get_args, get_origin

import typer

from segpipe.errors import UnsavedError
from segpipe.workflows.notes import GROUPS, OUTPUT, Note, Options, note_of, option, types_of
from segpipe.workflows.page import FAILED_CASES


@dataclass(frozen=True, kw_only=True)
class Display(Options):
    """How a command's result is shown."""

    quiet: bool = option("No progress and no notes; results and errors only.", False, group=OUTPUT)
    as_json: bool = option("Print the result as JSON on stdout.", False, group=OUTPUT, flag="json")


def command_of(name: str, record: type[Options]) -> Callable[..., None]:
    """Return the function that typer makes a command of: `segpipe X` is `workflows/X`."""

    def command(**values: Any) -> None:
        given = {key: value for key, value in values.items() if value not in (None, [])}
        quiet, as_json = given.pop("quiet", False), given.pop("as_json", False)
        options = record(**given)
        workflow = workflow_of(name)
        getattr(workflow, "own_process", lambda: None)()
        display = import_module("segpipe.cli.display")
        try:
            done = getattr(workflow, function_of(name))(options, display.watch(quiet=quiet or as_json))
        except UnsavedError as error:
            display.show(workflow.page(error.result, options), as_json=as_json)
            raise
        page = workflow.page(done, options)
        display.show(page, as_json=as_json)
        if page.failed or page.exit_code:
            raise typer.Exit(page.exit_code or FAILED_CASES)

    asked = [(kind, one) for kind in (record, Display) for one in fields(kind) if not note_of(one).python_only]
    asked.sort(key=lambda pair: GROUPS.index(note_of(pair[1]).group))
    command.__signature__ = inspect.Signature([_parameter(kind, one) for kind, one in asked])  # type: ignore[attr-defined]
    command.__doc__ = record.__doc__
    return command


def function_of(name: str) -> str:
    """Return the name of a command's module, and of its function there."""
    return f"{name}_" if iskeyword(name) else name


def workflow_of(name: str) -> Any:
    """Return the module of a command; of a package, its command.py."""
    module = import_module(f"segpipe.workflows.{function_of(name)}")
    return import_module(f"{module.__name__}.command") if hasattr(module, "__path__") else module


def _parameter(record: type[Options], one: "Field[Any]") -> inspect.Parameter:
    note = note_of(one)
    required, kind = one.default is MISSING, types_of(record)[one.name]
    if kind is bool or bool in get_args(kind):
        kind = bool | None
    how: dict[str, Any] = {"help": _help(note, one), "show_default": False, "metavar": note.metavar}
    if note.parse is not None:
        how["parser"], kind = partial(_parsed, note.parse), str
    elif kind == tuple[Path, ...]:
        kind = list[Path]
    elif kind == tuple[str, ...]:
        kind = list[str]
    if not required and type(None) not in get_args(kind):
        kind = Optional[kind]  # noqa: UP045 - of a value
    if {int, float} & {kind, *get_args(kind)} and note.parse is None and get_origin(kind) is not tuple:
        how |= {"min": note.least, "max": note.most}
    if note.argument:
        annotation: Any = Annotated[kind, typer.Argument(**how)]
    else:
        annotation = Annotated[kind, typer.Option(*_flags(one, note, kind), rich_help_panel=note.group, **how)]
    default = inspect.Parameter.empty if required else None
    return inspect.Parameter(one.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _flags(one: "Field[Any]", note: Note, kind: Any) -> list[str]:
    """Return an option's names: one that is on, or undecided, unless given can be switched off."""
    name = note.flag or one.name.replace("_", "-")
    flags = [f"--{part.removeprefix('--')}" for part in name.split("/")]
    switch = kind is bool or bool in get_args(kind)
    if switch and len(flags) == 1 and one.default is not False:
        flags.append(f"--no-{name}")
    return ["/".join(flags), *([f"-{note.short}"] if note.short else [])]


def _help(note: Note, one: "Field[Any]") -> str:
    """Return an option's help, with what is done without it."""
    default = one.default
    known = default not in (MISSING, None, ()) and default is not False and not callable(default)
    if isinstance(default, tuple) and known:
        text = ("/" if note.parse else ", ").join(map(str, default))
    else:
        text = one.name.replace("_", "-") if default is True else str(default)
    shown = note.unless_given or (text if known else "")
    return f"{note.help}  [default: {shown}]" if shown else note.help


def _parsed(parse: Callable[[str], Any], text: str) -> Any:
    try:
        return parse(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
