"""The rules artefact: what is removed from a segmentation, and what is filled."""

from typing import Literal

from pydantic import Field

from segpipe.core.artefact import Artefact, Record

EVERYTHING = "*"
"""Name that stands for all labels together."""


class Rule(Record):
    """What is done to one label or region."""

    label: str
    """Its name, or ``*`` for the foreground as a whole."""
    keep: Literal["all", "largest"] = "all"
    """Which connected components stay; voxels that touch at a face, an edge or a corner are connected."""
    min_mm3: float = Field(0.0, ge=0, le=1e9)
    """Smaller components go."""
    fill_holes: bool = False
    """Background that is enclosed becomes the label."""

    def describe(self) -> str:
        """The rule in words."""
        parts = ["largest component only"] if self.keep == "largest" else []
        parts += [f"no component under {self.min_mm3:g} mm³"] if self.min_mm3 else []
        parts += ["holes filled"] if self.fill_holes else []
        return f"{'the whole foreground' if self.label == EVERYTHING else self.label}: {', '.join(parts) or 'nothing'}"


class Trial(Record):
    """What a rule gave on the cases that it was tried on."""

    rule: Rule
    before: dict[str, float | None]
    """Mean Dice of each label without it, over cases that have the label or in which it was found; None where there is no such case."""
    after: dict[str, float | None]
    """With it, over the same cases: a false alarm that is gone counts 1."""
    chosen: bool


class PostprocessingRules(Artefact):
    """Rules in the order in which they are applied, and what they were chosen on."""

    rules: tuple[Rule, ...] = ()
    chosen_on: str = ""
    n_cases: int = Field(0, ge=0)
    trials: tuple[Trial, ...] = ()
