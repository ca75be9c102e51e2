"""Recipes of distillation: terms by name. TOML files ``plans/distill*.toml``, checked here."""

from pathlib import Path

from pydantic import Field

from segpipe.core.artefact import Record
from segpipe.distillation.spec import KdTerm
from segpipe.errors import DistillationError
from segpipe.planning.recipe import read_recipe, shipped_plans


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
    page = "docs/stages/distillation.md"
    return read_recipe(name_or_path, DistillationRecipe, distillation_recipe_names(), DistillationError, page)
