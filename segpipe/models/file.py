"""The portable model: one zip of JSON and safetensors. No pickle, nothing to execute."""

import io
import json
import zipfile
from dataclasses import dataclass, field, replace
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, Field, ValidationError
from safetensors.torch import load, save
from torch import Tensor

from segpipe.core.artefact import FolderName, VariantName, first_problem, require_not_newer
from segpipe.core.regular import open_regular, regular
from segpipe.core.whole import write_atomically
from segpipe.errors import ArtefactError, ModelError, SegpipeError
from segpipe.execution.memory import require_room_for
from segpipe.models.torch_file import load_tested, require_room_for_members
from segpipe.planning.schema import Plan
from segpipe.postprocessing.schema import PostprocessingRules, Rule
from segpipe.version import __version__

FORMAT = 1
ENSEMBLE_FORMAT = 2
Weights = dict[str, Tensor]
_PREVIOUS = "previous.segpipe"
_POSTPROCESSING = "postprocessing.json"
_OTHER = "other_{}.segpipe"
_MOST_MEMBERS = 1000

# A fixed date: the same content gives the same bytes.
_EPOCH = (1980, 1, 1, 0, 0, 0)


class _About(BaseModel):
    """model.json: what the other members of the zip are."""

    format: int = Field(ge=1)
    made_by: str | None = Field(None, max_length=100)
    configuration: FolderName
    variant: VariantName
    mirror_axes: tuple[Literal[0, 1, 2], ...]
    folds: tuple[FolderName, ...]
    others: int = Field(0, ge=0, le=_MOST_MEMBERS)


@dataclass(frozen=True)
class ModelFile:
    """What a model file holds: the plan's JSON, how it was trained, and the weights of each fold."""

    plan_json: str
    """As it was written: the digest follows from the text."""
    configuration: str
    variant: str
    mirror_axes: tuple[int, ...]
    folds: dict[str, Weights]
    previous: "ModelFile | None" = None
    """The model whose segmentation is a further input (cascade)."""
    postprocessing_json: str = ""
    """Rules by which its segmentations are cleaned; empty for none."""
    others: tuple["ModelFile", ...] = ()
    """Further models of an ensemble, whose probabilities are averaged with this one's."""
    made_by: str | None = __version__
    """Version of segpipe that wrote the file; None where it does not say."""
    plan: Plan = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Parse the plan.

        Raises
        ------
        ArtefactError
            If it is damaged or cannot be read by this version.
        """
        try:
            plan = Plan.from_json(self.plan_json, advice="make or export the model again", made_by=self.made_by)
        except ArtefactError as error:
            raise ArtefactError(f"its plan: {error}") from error
        found = plan.configurations.get(self.configuration)
        if found is None:
            raise ArtefactError(
                f"is of the configuration {self.configuration!r}; its plan has {', '.join(plan.configurations)}: make or export it again"
            )
        if any(axis >= found.dims for axis in self.mirror_axes) or len(set(self.mirror_axes)) < len(self.mirror_axes):
            raise ArtefactError(
                f"has the mirror axes {list(self.mirror_axes)}; expected some of the {found.dims} axes of {found.name}, none twice"
            )
        if "ct" in found.normalisation and not plan.intensities:
            raise ArtefactError(
                f"its plan: configuration {found.name}: normalisation ct needs intensities, and there are none"
            )
        if (found.previous_stage is None) != (self.previous is None):
            raise ArtefactError(
                f"its plan and its members say different things of a cascade's first stage ({found.previous_stage})"
            )
        object.__setattr__(self, "plan", plan)

    def write(self, path: Path) -> None:
        """Write atomically."""
        write_atomically(path, self.to_bytes())

    def to_bytes(self) -> bytes:
        """Return the file's content; the same model gives the same bytes."""
        about: dict[str, Any] = {
            "format": FORMAT,
            "made_by": __version__,
            "configuration": self.configuration,
            "variant": self.variant,
            "mirror_axes": list(self.mirror_axes),
            "folds": list(self.folds),
        }
        if self.others:
            # A reader that knows of no ensembles must not take a part for the whole.
            about |= {"format": ENSEMBLE_FORMAT, "others": len(self.others)}
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
            archive.writestr(zipfile.ZipInfo("model.json", _EPOCH), json.dumps(about, indent=1))
            archive.writestr(zipfile.ZipInfo("plan.json", _EPOCH), self.plan_json)
            if self.postprocessing_json:
                archive.writestr(zipfile.ZipInfo(_POSTPROCESSING, _EPOCH), self.postprocessing_json)
            for fold, weights in self.folds.items():
                archive.writestr(zipfile.ZipInfo(f"fold_{fold}.safetensors", _EPOCH), save(weights))
            if self.previous is not None:
                archive.writestr(zipfile.ZipInfo(_PREVIOUS, _EPOCH), self.previous.to_bytes())
            for number, other in enumerate(self.others):
                archive.writestr(zipfile.ZipInfo(_OTHER.format(number), _EPOCH), other.to_bytes())
        return buffer.getvalue()

    def digest(self, folds: tuple[str, ...]) -> str:
        """Return the sha256 of all that some folds' predictions follow from; further folds in the file change nothing."""
        hashed = sha256(f"{self.configuration}\n{self.plan_json}\n{self.postprocessing_json}".encode())
        for fold in folds:
            hashed.update(fold.encode() + weights_digest(self.folds[fold]).encode())
        if self.previous is not None:
            hashed.update(self.previous.digest(self.previous.used(self.folds_before(folds))).encode())
        for other in self.others:
            theirs = folds if folds and all(fold in other.folds for fold in folds) else other.used(())
            hashed.update(other.digest(theirs).encode())
        return hashed.hexdigest()

    def rules(self, path: Path) -> tuple[Rule, ...]:
        """Return the rules by which its segmentations are cleaned.

        Raises
        ------
        ModelError
            If they are damaged or cannot be read by this version; names ``path``.
        """
        if not self.postprocessing_json:
            return ()
        advice = "choose it again, or give --no-postprocess"
        try:
            return PostprocessingRules.from_json(self.postprocessing_json, advice=advice, made_by=self.made_by).rules
        except ArtefactError as error:
            raise ModelError(f"{path}: its post-processing: {error}") from error

    def folds_before(self, folds: tuple[str, ...]) -> tuple[str, ...]:
        """Folds of the previous stage that go with some folds: the same, which held out the same cases; else all that it has."""
        return folds if self.previous is not None and all(f in self.previous.folds for f in folds) else ()

    @property
    def members(self) -> tuple["ModelFile", ...]:
        """Each model of its ensemble, this one first."""
        return (replace(self, others=()), *self.others)

    def single(self, path: Path, what: str) -> "ModelFile":
        """Return this model where it stands alone.

        Raises
        ------
        ModelError
            If it is an ensemble, which ``what`` cannot be.
        """
        if self.others:
            parts = ", ".join(member.configuration for member in self.members)
            raise ModelError(
                f"{path}: is an ensemble of {parts}; {what} takes a single model, such as one of its members"
            )
        return self

    def used(self, wanted: tuple[str, ...]) -> tuple[str, ...]:
        """Folds to ensemble: the wanted ones, or all the numbered ones, or "all" where there is no other.

        A fold that saw every case stands for itself; it is no member of the folds' ensemble unless asked for.
        """
        return wanted or tuple(f for f in self.folds if f != "all") or ("all",)

    @classmethod
    def read(cls, path: Path) -> "ModelFile":
        """Read a model.

        Raises
        ------
        ModelError
            If the file is missing, damaged, or cannot be read by this version; its plan likewise.
        """
        return cls._from_zip(path, path)

    @classmethod
    def _from_zip(cls, file: "Path | io.BytesIO", path: Path) -> "ModelFile":
        try:
            with zipfile.ZipFile(regular(file) if isinstance(file, Path) else file) as archive:
                require_room_for_members(path, archive)
                about = _about(archive.read("model.json"))
                folds = {fold: load(archive.read(f"fold_{fold}.safetensors")) for fold in about.folds}
                plan_json = archive.read("plan.json").decode()
                rules = archive.read(_POSTPROCESSING).decode() if _POSTPROCESSING in archive.namelist() else ""
                held = io.BytesIO(archive.read(_PREVIOUS)) if _PREVIOUS in archive.namelist() else None
                previous = None if held is None else cls._from_zip(held, path)
                others = tuple(
                    cls._from_zip(io.BytesIO(archive.read(_OTHER.format(n))), path) for n in range(about.others)
                )
            return cls(
                plan_json,
                about.configuration,
                about.variant,
                about.mirror_axes,
                folds,
                previous,
                rules,
                others,
                about.made_by,
            )
        except FileNotFoundError as error:
            raise ModelError(f"{path}: no such model file") from error
        except ArtefactError as error:
            raise ModelError(f"{path}: {error}") from error
        except SegpipeError:
            raise
        except Exception as error:  # zip, JSON and safetensors raise many kinds here; each means the same to the user
            raise ModelError(f"{path}: not a segpipe model, or damaged ({error})") from error


def _about(content: bytes) -> _About:
    """Return what model.json says.

    Raises
    ------
    ArtefactError
        If it is of a newer version, or says nothing of the kind.
    """
    held = json.loads(content)
    if isinstance(held, dict) and isinstance(held.get("format"), int):
        require_not_newer("model file", held["format"], ENSEMBLE_FORMAT, str(held.get("made_by")))
        if held["format"] < FORMAT:
            raise ArtefactError(
                f"model file has format {held['format']}, expected {FORMAT} to {ENSEMBLE_FORMAT}; make it again"
            )
    again = "it is damaged: make or export the model again"
    try:
        about = _About.model_validate(held)
    except ValidationError as error:
        raise ArtefactError(f"model.json: {first_problem(error)}; {again}") from error
    if len(set(about.folds)) < len(about.folds):
        raise ArtefactError(f"model.json: folds {list(about.folds)[:10]} name one fold twice; {again}")
    return about


def model_in(path: Path) -> Path:
    """Return a model file's path, given it or the folder that holds it."""
    return path / "model.segpipe" if path.is_dir() else path


def is_weights_file(path: Path) -> bool:
    """Whether a file holds bare weights, by its ending: what torch saves (.pth, .pt), or safetensors."""
    return path.suffix.lower() in (".pth", ".pt", ".safetensors")


def read_weights(path: Path) -> Weights:
    """Read bare weights, without executing anything.

    Raises
    ------
    ModelError
        If the file is missing, or holds something else.
    """
    try:
        if path.suffix.lower() == ".safetensors":
            # The bytes, and the tensors made of them.
            require_room_for(path, 2 * regular(path).stat().st_size)
            found: Weights = load(regular(path).read_bytes())
            return found
        held = load_tested(path)
    except FileNotFoundError as error:
        raise ModelError(f"{path}: no such file") from error
    except SegpipeError:
        raise
    except Exception as error:  # torch raises many kinds here; each means the same to the user
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelError(f"{path}: no weights can be read from it ({first})") from error
    held = held.get("state_dict", held) if isinstance(held, dict) else held
    if not isinstance(held, dict) or not all(isinstance(value, Tensor) for value in held.values()):
        raise ModelError(f"{path}: holds {type(held).__name__}; expected tensors by name (a state dict)")
    return dict(held)


def read_model(path: Path) -> ModelFile:
    """Read a model file, or the one in a folder."""
    return ModelFile.read(model_in(path))


def weights_digest(weights: Weights) -> str:
    """Return the sha256 of weights, their names and shapes."""
    hashed = sha256()
    for name, value in sorted(weights.items()):
        hashed.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        hashed.update(value.contiguous().view(-1).view(torch.uint8).numpy().data)
    return hashed.hexdigest()


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file."""
    with open_regular(path) as file:
        return file_digest(file, "sha256").hexdigest()
