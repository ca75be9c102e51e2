"""What a student learns from its teacher, as data. No torch."""

from math import cos, pi
from typing import Annotated, Literal, cast, get_args

from pydantic import Field, ValidationError

from segpipe.core.artefact import Record, first_problem
from segpipe.core.text import did_you_mean
from segpipe.errors import DistillationError
from segpipe.networks.spec import parse_options

LOGITS = "logits"
"""In place of a module's name: what the network says of each voxel."""


class Term(Record):
    """One summand; the sum of all terms is added to the loss against the labels."""

    weight: float = Field(1.0, ge=0)
    """0 leaves the term out altogether."""
    delay: float = Field(0.0, ge=0, lt=1)
    """Share of the training before the term begins."""
    ramp: float = Field(0.0, ge=0, le=1)
    """Share of the training over which it then rises to its weight, along half a cosine."""

    def weight_at(self, progress: float) -> float:
        """Weight at a share of the training."""
        since = progress - self.delay
        if since < 0:
            return 0.0
        risen = 1.0 if since >= self.ramp else (1 - cos(pi * since / self.ramp)) / 2
        return self.weight * risen

    @property
    def modules(self) -> tuple[str, ...]:
        """Modules whose output it looks at; none of what looks at the logits."""
        at = getattr(self, "at", LOGITS)
        return () if at == LOGITS else (at,)


class VoxelTerm(Term):
    """Kullback-Leibler divergence of every voxel (Hinton et al. 2015); of regions, of each region's yes or no."""

    name: Literal["voxel"] = "voxel"
    temperature: float = Field(1.0, gt=0)
    balance: Literal["none", "class"] = "none"
    """Mean over voxels, or mean over classes of the mean over the voxels that the teacher gives to each."""
    lower_heads: bool = False
    """Also the heads at lower resolution, each counting half of the one above."""


class ChannelTerm(Term):
    """Channel-wise distillation (Shu et al. 2021): where in the patch each channel is strong."""

    name: Literal["channel"] = "channel"
    at: str = LOGITS
    temperature: float = Field(4.0, gt=0)


class DistTerm(Term):
    """DIST (Huang et al. 2022): correlation over the classes of a voxel, and over the voxels of a class."""

    name: Literal["dist"] = "dist"
    temperature: float = Field(1.0, gt=0)
    between: float = Field(1.0, ge=0)
    """Weight of the correlation over classes."""
    within: float = Field(1.0, ge=0)
    """Weight of the correlation over voxels."""


class PairTerm(Term):
    """Pair-wise affinity of nodes (Liu et al. 2019)."""

    name: Literal["pair"] = "pair"
    at: str = LOGITS
    node: int | None = Field(None, ge=1)
    """Edge of a node in voxels of the teacher's map: beta is its power of the axes. None for the smallest that gives 512 nodes or fewer."""
    range: int | None = Field(None, ge=2)
    """Alpha: each node is compared with so many nearest ones, itself among them. None for all."""


class HolisticTerm(Term):
    """A critic that learns to tell teacher from student by image and probabilities (WGAN-GP, as in Liu et al. 2019)."""

    name: Literal["holistic"] = "holistic"
    weight: float = Field(0.1, ge=0)
    penalty: float = Field(10.0, ge=0)
    """Weight of the gradient penalty."""
    learning_rate: float = Field(4e-4, gt=0)
    """Learning rate of the critic."""
    width: int = Field(32, ge=8)
    """Feature maps of the critic's first layer."""


class HintTerm(Term):
    """FitNets (Romero et al. 2015): the student's map, through a 1x1 convolution, against the teacher's."""

    name: Literal["hint"] = "hint"
    at: str


class AttentionTerm(Term):
    """Attention transfer (Zagoruyko and Komodakis 2017): where in the patch the maps are large."""

    name: Literal["attention"] = "attention"
    at: str
    power: float = Field(2.0, gt=0)


class FspTerm(Term):
    """Flow between two layers (Yim et al. 2017): products of their channels, averaged over positions."""

    name: Literal["fsp"] = "fsp"
    at: str
    to: str

    @property
    def modules(self) -> tuple[str, ...]:
        """Both layers."""
        return (self.at, self.to)


class RelationalTerm(Term):
    """Relational distillation (Park et al. 2019): distances and angles among the parts of the patches of a batch."""

    name: Literal["relational"] = "relational"
    at: str
    angle: float = Field(2.0, ge=0)
    """Weight of angles against that of distances."""
    parts: int = Field(3, ge=1, le=6)
    """Parts of a patch along each axis."""


class SimilarityTerm(Term):
    """Similarity-preserving distillation (Tung and Mori 2019), among the parts of the patches of a batch."""

    name: Literal["similarity"] = "similarity"
    at: str
    parts: int = Field(4, ge=1, le=16)
    """Parts of a patch along each axis."""


class RegionTerm(Term):
    """Region affinity (Qin et al. 2021): how alike the mean vectors of the labels' regions are."""

    name: Literal["region"] = "region"
    at: str


class MaskedTerm(Term):
    """Masked generation (MGD, Yang et al. 2022): the teacher's map, made of a part of the student's."""

    name: Literal["masked"] = "masked"
    at: str
    share: float = Field(0.65, ge=0, lt=1)
    """Share of the positions that are hidden."""


class SelfTerm(Term):
    """Deep to shallow (as in Zhang et al. 2019): the heads at lower resolution learn from the student's own at full resolution."""

    name: Literal["self"] = "self"
    temperature: float = Field(1.0, gt=0)


class MutualTerm(Term):
    """Mutual learning (Zhang et al. 2018): a second student of the same kind is trained beside, and each learns from the other."""

    name: Literal["mutual"] = "mutual"
    temperature: float = Field(1.0, gt=0)


KdTerm = Annotated[
    VoxelTerm
    | ChannelTerm
    | DistTerm
    | PairTerm
    | HolisticTerm
    | HintTerm
    | AttentionTerm
    | FspTerm
    | RelationalTerm
    | SimilarityTerm
    | RegionTerm
    | MaskedTerm
    | SelfTerm
    | MutualTerm,
    Field(discriminator="name"),
]
TERM_CLASSES: dict[str, type[Term]] = {c.model_fields["name"].default: c for c in get_args(get_args(KdTerm)[0])}
WITHOUT_TEACHER = (SelfTerm, MutualTerm)
"""Terms that a student needs no teacher for."""


def parse_term(text: str) -> KdTerm:
    """Read ``NAME`` or ``NAME:key=value,...``.

    Raises
    ------
    DistillationError
        If there is no such term, or an option is unknown, missing or wrong.
    """
    name, _, rest = text.partition(":")
    if name not in TERM_CLASSES:
        raise DistillationError(
            f"--kd {text!r}: no such term{did_you_mean(name, TERM_CLASSES)}; there are {', '.join(TERM_CLASSES)}"
        )
    allowed = [key for key in TERM_CLASSES[name].model_fields if key != "name"]
    try:
        return cast(KdTerm, TERM_CLASSES[name].model_validate({**parse_options(rest), "name": name}))
    except ValidationError as error:
        raise DistillationError(
            f"--kd {text!r}: option {first_problem(error)}; its options are {', '.join(allowed)}"
        ) from error
    except ValueError as error:
        raise DistillationError(f"--kd {text!r}: {error}; its options are {', '.join(allowed)}") from error
