"""Recipes of distillation: terms by name. TOML files ``plans/distill*.toml``, checked here."""

import tomllib
from pathlib import Path

from pydantic import Field, ValidationError

from segpipe.artefact import Record
from segpipe.distillation.spec import KdTerm
from segpipe.errors import DistillationError
from segpipe.planning.recipe import shipped_plans


class DistillationRecipe(Record):
    """A named set of terms."""

    name: str
    description: str
    terms: tuple[KdTerm, ...] = Field(min_length=1)
    cap: float = Field(10.0, gt=0)
    """A term that is larger than so many times the loss against the labels is scaled down to that, with a warning."""


def distillation_recipe_names() -> list[str]:
    """Names of the recipes that come with segpipe."""
    return sorted(p.stem for p in shipped_plans().glob("distill*.toml"))


def load_distillation_recipe(name_or_path: str | Path) -> DistillationRecipe:
    """Load a recipe by the name of a shipped one, or from a TOML file.

    Raises
    ------
    DistillationError
        If there is no such recipe, or it holds an unknown key or a wrong value.
    """
    path = Path(name_or_path)
    if path.suffix != ".toml":
        path = shipped_plans() / f"{name_or_path}.toml"
    if not path.is_file():
        raise DistillationError(
            f"recipe {str(name_or_path)!r}: not found; known are {', '.join(distillation_recipe_names())}, or give the path of a .toml file"
        )
    try:
        return DistillationRecipe.model_validate(tomllib.loads(path.read_text()))
    except tomllib.TOMLDecodeError as error:
        raise DistillationError(f"{path}: is not TOML: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        raise DistillationError(
            f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}, found {first['input']!r}; see docs/stages/distillation.md"
        ) from error
