"""What a stage leaves behind: frozen records, written whole or not at all."""

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from hashlib import sha256
from pathlib import Path, PurePath
from textwrap import shorten
from typing import Annotated, Any, ClassVar, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
    ValidationInfo,
    model_validator,
)

from segpipe.core.regular import read_bytes
from segpipe.core.system_names import case_name, folder_name, variant_name
from segpipe.core.whole import write_atomically
from segpipe.errors import ArtefactError, SegpipeError
from segpipe.version import __version__

Migration = Callable[[dict[str, Any]], dict[str, Any]]
_LONGEST_SHOWN, _LONGEST_MESSAGE = 80, 300
FolderName = Annotated[str, AfterValidator(folder_name)]
VariantName = Annotated[str, AfterValidator(variant_name)]
CaseName = Annotated[str, AfterValidator(case_name)]
RecordedPath = Annotated[Path, PlainSerializer(PurePath.as_posix, return_type=str, when_used="json")]
"""A path in a record: written with ``/``, which every system reads, also where it was made on Windows."""


class Record(BaseModel):
    """A frozen value with checked fields; part of an artefact."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


def added_later(default: Any, **limits: Any) -> Any:
    """Field that is not written at its default: the digests of what was written before there was the field stay as they are.

    Parameters
    ----------
    default : object
    **limits
        Further arguments of pydantic's ``Field``.
    """
    return Field(default, exclude_if=lambda value: bool(value == default), **limits)


class Artefact(Record):
    """A record that is a file of its own.

    The file also holds ``made_by``, the version of segpipe that wrote it. That is no field: equality and digests do not see it.
    """

    migrations: ClassVar[Mapping[int, Migration]] = {}
    """By schema version: what makes the next version's content of it."""
    schema_version: int = 1

    @model_validator(mode="before")
    @classmethod
    def _of_this_version(cls, content: Any, info: ValidationInfo) -> Any:
        if not isinstance(content, dict):
            return content
        made_by = content.get("made_by", (info.context or {}).get("made_by"))
        fields = {key: value for key, value in content.items() if key != "made_by"}
        return migrated(fields, cls.__name__, cls.model_fields["schema_version"].default, cls.migrations, made_by)

    def to_json(self) -> str:
        """Return the artefact as indented JSON; the same value always gives the same text."""
        return self.model_dump_json(indent=1) + "\n"

    def digest(self) -> str:
        """Return the sha256 of the artefact's JSON, by which later artefacts cite it."""
        return sha256(self.to_json().encode()).hexdigest()

    def write(self, path: Path) -> Path:
        """Write the artefact atomically, with the version of segpipe, and return its path."""
        made_by = f'{{\n "made_by": {json.dumps(__version__)},'
        write_atomically(path, self.to_json().replace("{", made_by, 1).encode())
        return path

    @classmethod
    def from_json(cls, content: str | bytes, *, advice: str, made_by: str | None = None) -> Self:
        """Return the artefact that a text holds, whichever version wrote it.

        Parameters
        ----------
        content : str or bytes
            JSON.
        advice : str
            What the user does about a damaged text.
        made_by : str, optional
            Version of segpipe that wrote what the text lies in.

        Raises
        ------
        ArtefactError
            If the text is from a newer version, from one that cannot be migrated, or damaged. The message does not say where it lies.
        """
        try:
            return cls.model_validate_json(content, context={"made_by": made_by})
        except ValidationError as error:
            raise ArtefactError(
                f"{first_problem(error)} ({error.error_count()} problem(s) in all); "
                f"it is damaged or from another version: {advice}"
            ) from error

    @classmethod
    def lies(cls, path: Path) -> bool:
        """Tell whether a file is an artefact of this kind."""
        try:
            cls.read(path)
        except (SegpipeError, OSError):
            return False
        return True

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read an artefact.

        Raises
        ------
        ArtefactError
            If the file is missing, or its content is refused by :meth:`from_json`.
        """
        try:
            return cls.from_json(read_bytes(path), advice="delete it and run its stage again")
        except FileNotFoundError as error:
            raise ArtefactError(f"{path}: not found; run the earlier stage that writes it first") from error
        except ArtefactError as error:
            raise ArtefactError(f"{path}: {error}") from error


class ArraysRecord(Artefact):
    """Record of the arrays in its folder. Written last: where it is, the arrays are whole."""

    arrays: dict[str, str] = added_later({})
    """sha256 of each array, by the name of its file; empty where 0.1.0.dev7 or an older version wrote them."""

    def sha256_of(self, file: Path) -> str | None:
        """Return the digest that an array of the folder must have; None where none is kept."""
        return self.arrays.get(file.name)


def sha256_on_record(record: Path) -> dict[str, str]:
    """Return the sha256 of the arrays beside a record of any kind, by the names of their files; empty where none is kept.

    Raises
    ------
    ArtefactError
        If the record is missing or damaged.
    """
    try:
        kept: dict[str, str] = json.loads(read_bytes(record)).get("arrays", {})
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise ArtefactError(f"{record}: cannot be read ({error}); run its stage again") from error
    return kept


def migrated(
    content: dict[str, Any], kind: str, newest: int, migrations: Mapping[int, Migration], made_by: str | None
) -> dict[str, Any]:
    """Return content as this version of segpipe writes it, before any other field is looked at.

    Parameters
    ----------
    content : dict
        Where it has no ``schema_version`` it is of today's.
    kind : str
        Name of what it is, for errors.
    newest : int
        The schema version that is written today.
    migrations : mapping
        By schema version: what makes the next version's content of it.
    made_by : str or None
        Version of segpipe that wrote it, where it is known.

    Raises
    ------
    ArtefactError
        If the content is newer, or older and a migration is missing.
    """
    found = content.get("schema_version", newest)
    if not isinstance(found, int):
        raise ValueError(f"schema_version: expected a whole number, found {repr(found)[:_LONGEST_SHOWN]}")
    require_not_newer(kind, found, newest, made_by)
    for version in range(found, newest):
        if version not in migrations:
            raise ArtefactError(
                f"{kind} has schema version {version} and was made by {_maker(made_by)}; segpipe {__version__} reads {newest} and has no "
                "migration: use the version that made it, or make it again"
            )
        content = {**migrations[version](content), "schema_version": version + 1}
    return content


def require_not_newer(kind: str, found: int, newest: int, made_by: str | None) -> None:
    """Raise if something was written by a newer version of segpipe in a way that this one does not know.

    Raises
    ------
    ArtefactError
        Naming the version to install.
    """
    if found > newest:
        raise ArtefactError(
            f"{kind} has schema version {found} and was made by {_maker(made_by)}; segpipe {__version__} reads up to {newest}: "
            f"install {f'segpipe {made_by} or newer' if made_by else 'a newer segpipe'}"
        )


def first_problem(error: ValidationError) -> str:
    """Return the first error of a validation as a phrase: where, what is wrong, and what was found if that is short."""
    first = error.errors()[0]
    found = repr(first["input"])
    shown = "" if first["type"] == "missing" or len(found) > _LONGEST_SHOWN else f", found {found}"
    what = shorten(first["msg"].removeprefix("Value error, "), _LONGEST_MESSAGE, placeholder="...")
    return ": ".join(filter(None, (".".join(map(str, first["loc"])), f"{what}{shown}")))


def _maker(made_by: str | None) -> str:
    return f"segpipe {made_by}" if made_by else "an unnamed version of segpipe"


def json_digest(value: object) -> str:
    """Return the sha256 of a plain value's canonical JSON."""
    return sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def json_lines(text: str, *needed: str) -> list[dict[str, Any]]:
    """Return the objects of a log with an object a line; a line that is damaged, or lacks a key, is passed over.

    Parameters
    ----------
    text : str
    *needed : str
        Keys without which a line is none.
    """
    found = []
    for line in text.splitlines():
        with suppress(ValueError, RecursionError):
            held = json.loads(line)
            if isinstance(held, dict) and held.keys() >= set(needed):
                found.append(held)
    return found
