"""What a stage leaves behind: frozen records, written whole or not at all."""

import json
import os
import tempfile
from hashlib import sha256
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, ValidationError

from segpipe.errors import ArtefactError


class Record(BaseModel):
    """A frozen value with checked fields; part of an artefact."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


class Artefact(Record):
    """A record that is a file of its own."""

    schema_version: int = 1

    def to_json(self) -> str:
        """Return the artefact as indented JSON; the same value always gives the same text."""
        return self.model_dump_json(indent=1) + "\n"

    def digest(self) -> str:
        """Return the sha256 of the artefact's JSON, by which later artefacts cite it."""
        return sha256(self.to_json().encode()).hexdigest()

    def write(self, path: Path) -> Path:
        """Write the artefact atomically and return its path."""
        write_atomically(path, self.to_json().encode())
        return path

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read an artefact.

        Raises
        ------
        ArtefactError
            If the file is missing, is not JSON, or holds other fields than this version of segpipe writes.
        """
        try:
            return cls.model_validate_json(path.read_bytes())
        except FileNotFoundError as error:
            raise ArtefactError(f"{path}: not found; run the earlier stage that writes it first") from error
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "the file"
            raise ArtefactError(
                f"{path}: {where}: {first['msg']} ({error.error_count()} problem(s) in all); "
                "the file is damaged or from another version: delete it and run its stage again"
            ) from error


def write_atomically(path: Path, content: bytes | memoryview) -> None:
    """Write a file so that a reader sees the old content or the new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o666 & ~_umask())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def json_digest(value: object) -> str:
    """Return the sha256 of a plain value's canonical JSON."""
    return sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
