"""What a loss is made of, as data. No torch."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat

from segpipe.core.artefact import Record

BACKGROUND = "background"
"""What the background is called among labels that are weighed."""

Frequencies = Literal["balanced", "median_frequency"]
ClassWeights = dict[str, NonNegativeFloat]


class Term(Record):
    """One summand."""

    weight: float = Field(1.0, gt=0)


class DiceTerm(Term):
    """Soft Dice."""

    name: Literal["dice"] = "dice"
    batch: bool | None = None
    """Overlaps are summed over the batch before they are divided; as planned unless given."""


class WeightedTerm(Term):
    """A term that is a mean over voxels."""

    class_weights: Frequencies | ClassWeights | None = None
    """How much a voxel counts by its label: by name (background included; 1 where not named), or from how often each label occurs:
    ``balanced`` (inversely) or ``median_frequency`` (Eigen and Fergus 2015). A plan holds numbers."""


class CrossEntropyTerm(WeightedTerm):
    """Cross-entropy; of regions, binary cross-entropy."""

    name: Literal["cross_entropy"] = "cross_entropy"


class FocalTerm(WeightedTerm):
    """Cross-entropy that counts voxels less the surer they are."""

    name: Literal["focal"] = "focal"
    gamma: float = Field(2.0, ge=0)


class TopKTerm(Term):
    """Cross-entropy of the voxels where it is largest."""

    name: Literal["top_k"] = "top_k"
    share: float = Field(0.1, gt=0, le=1)
    """Share of the batch's labelled voxels."""


class TverskyTerm(Term):
    """Dice whose two kinds of error count differently."""

    name: Literal["tversky"] = "tversky"
    false_positives: float = Field(0.3, ge=0)
    false_negatives: float = Field(0.7, ge=0)
    exponent: float = Field(1.0, gt=0)
    """Exponent of one minus the index; 0.75 in focal Tversky."""
    batch: bool | None = None
    """As in Dice."""


class GeneralisedDiceTerm(Term):
    """Dice over all labels together, each weighed by the inverse square of its size."""

    name: Literal["generalised_dice"] = "generalised_dice"


class BoundaryTerm(Term):
    """Probability times signed distance to the reference's surface."""

    name: Literal["boundary"] = "boundary"


class HausdorffTerm(Term):
    """Squared error times distance to both surfaces."""

    name: Literal["hausdorff"] = "hausdorff"
    alpha: float = Field(2.0, gt=0)
    """Power of the distance."""


class ClDiceTerm(Term):
    """Overlap of each mask with the other's skeleton, for tubes."""

    name: Literal["cldice"] = "cldice"
    iterations: int = Field(3, ge=1)
    """Erosions; as many as the thickest tube has voxels of radius."""


LossTerm = Annotated[
    DiceTerm
    | CrossEntropyTerm
    | FocalTerm
    | TopKTerm
    | TverskyTerm
    | GeneralisedDiceTerm
    | BoundaryTerm
    | HausdorffTerm
    | ClDiceTerm,
    Field(discriminator="name"),
]
DEFAULT_LOSS: tuple[LossTerm, ...] = (DiceTerm(), CrossEntropyTerm())
