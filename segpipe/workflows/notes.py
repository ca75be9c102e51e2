"""A field of a record with its note: what it means, for whoever asks for it. Standard library only."""

from collections.abc import Callable
from dataclasses import MISSING, Field, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, Self, get_args, get_type_hints

from segpipe.core.system_names import real_path
from segpipe.core.text import did_you_mean
from segpipe.errors import UsageError

GROUPS = WHAT, LENGTH, SCORES, WHERE, REPEAT, OUTPUT = (
    "What", "How long", "Prediction and scores", "Where", "Repeating it", "Output",
)  # fmt: skip
"""Groups of options, in the order of the help."""


@dataclass(frozen=True)
class Note:
    """What a field means, for whoever asks for it."""

    help: str
    group: str = WHAT
    flag: str = ""
    """Name on the command line, where it is not the field's: "format", or "json/--no-json"."""
    short: str | None = None
    metavar: str | None = None
    least: float | None = None
    most: float | None = None
    argument: bool = False
    """Given by its place instead of its name."""
    unless_given: str = ""
    """What is done without it, where that is no value."""
    parse: Callable[[str], Any] | None = None
    """Reads the text of the command line; raises ValueError with what was expected."""
    file: str = ""
    """Ending by which a text is a file instead of a name."""
    python_only: bool = False
    terminal_only: bool = False
    """Whether it says how a result is shown, or who is asked, at a terminal."""


def option(help: str, default: Any = MISSING, **note: Any) -> Any:
    """Field of a record, with its note."""
    return field(default=default, metadata={"note": Note(help, **note)})


def argument(help: str, metavar: str, default: Any = MISSING) -> Any:
    """Field that is given by its place."""
    return option(help, default, argument=True, metavar=metavar)


@dataclass(frozen=True, kw_only=True)
class Options:
    """Base of every record: values are checked and brought to their types when the record is made."""

    def __post_init__(self) -> None:
        kinds = types_of(type(self))
        for one in fields(self):
            object.__setattr__(self, one.name, _settled(kinds[one.name], one, getattr(self, one.name)))

    def resolved(self) -> Self:
        """Return the same with absolute paths: whoever takes it over may be in another folder."""
        changed: dict[str, Any] = {}
        for one in fields(self):
            value, ending = getattr(self, one.name), note_of(one).file
            if isinstance(value, Path) or (ending and isinstance(value, str) and value.endswith(ending)):
                changed[one.name] = type(value)(real_path(Path(value)))
            elif isinstance(value, tuple) and any(isinstance(part, Path) for part in value):
                changed[one.name] = tuple(real_path(part) for part in value)
        return replace(self, **changed)

    def plain(self) -> dict[str, Any]:
        """Return the values as JSON knows them."""
        found = {one.name: getattr(self, one.name) for one in fields(self) if not note_of(one).python_only}
        return {name: _plain(value) for name, value in found.items()}


def note_of(one: "Field[Any]") -> Note:
    """Note of a field."""
    note: Note = one.metadata["note"]
    return note


def types_of(record: type[Options]) -> dict[str, Any]:
    """Type of each field."""
    return get_type_hints(record)


def _settled(kind: Any, one: "Field[Any]", value: Any) -> Any:
    note = note_of(one)
    name = f"--{one.name.replace('_', '-')}"
    if value is None:
        return None
    if note.parse is not None and isinstance(value, str):
        try:
            return note.parse(value)
        except ValueError as error:
            raise UsageError(f"{name} {error}") from error
    if kind in (tuple[Path, ...], tuple[str, ...]):
        each = get_args(kind)[0]
        return (each(value),) if isinstance(value, (str, Path)) else tuple(each(part) for part in value)
    if kind in (Path, Path | None):
        return Path(value)
    if kind in (str, str | None):
        return str(value)
    choices = get_args(kind) if getattr(kind, "__origin__", None) is Literal else ()
    if choices and value not in choices:
        raise UsageError(
            f"{name} {value}{did_you_mean(str(value), map(str, choices))}: "
            f"expected {', '.join(choices[:-1])}{' or ' * bool(choices[:-1])}{choices[-1]}"
        )
    if note.least is not None and not isinstance(value, str) and not value >= note.least:
        raise UsageError(f"{name} {value}: expected {note.least:g} or more")
    if note.most is not None and not isinstance(value, str) and not value <= note.most:
        raise UsageError(f"{name} {value}: expected {note.most:g} or less")
    return value


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    return [_plain(part) for part in value] if isinstance(value, tuple) else value
