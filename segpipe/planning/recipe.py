"""Recipes: the choices that a fingerprint does not make. TOML files in ``plans/``, checked here."""

import tomllib
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import Field, NonNegativeFloat, ValidationError

from segpipe.augment.spec import AugmentationSettings
from segpipe.core.artefact import FolderName, Record, added_later, first_problem
from segpipe.core.regular import lies, read_text
from segpipe.core.text import did_you_mean
from segpipe.errors import RecipeError, SegpipeError
from segpipe.losses.spec import DEFAULT_LOSS, LossTerm
from segpipe.networks.spec import NetworkChoice

AnyRecipe = TypeVar("AnyRecipe", bound=Record)


class PlannerSettings(Record):
    """How patch, batch and network follow from the fingerprint. Defaults are nnU-Net's ExperimentPlanner."""

    base_features: int = Field(32, ge=1)
    """Feature maps of the first stage of a planned U-Net; each stage doubles them."""
    max_features_2d: int = Field(512, ge=1)
    max_features_3d: int = Field(320, ge=1)
    budget_gb: float = Field(8.0, gt=0)
    """Device memory to plan for."""
    reference_gb: float = Field(8.0, gt=0)
    """Device memory that the reference element counts fill."""
    reference_elements_2d: int = Field(85_000_000, gt=0)
    """Convolution output elements of one 2D sample, times reference batch over 2, that fill reference_gb."""
    reference_elements_3d: int = Field(560_000_000, gt=0)
    reference_batch_2d: int = Field(12, ge=1)
    reference_batch_3d: int = Field(2, ge=1)
    min_batch: int = Field(2, ge=1)
    max_batch: int | None = Field(None, ge=1)
    """Upper limit of the batch; None leaves it to memory and dataset size."""
    dataset_cover: float = Field(0.05, gt=0)
    """Largest share of all voxels of the dataset in one batch."""
    memory: Literal["elements", "bytes"] = "elements"
    """What is compared with the budget: nnU-Net's count of convolution outputs, or bytes of what a training step holds, with input
    channels, parameters and number type."""
    activation_bytes: Literal[2, 4] = 2
    """Bytes of an activation where memory is counted in bytes: 2 under bfloat16, 4 in float32."""
    measured_budget_gb: float | None = Field(None, gt=0)
    """Budget of networks other than the planned U-Nets, whose memory is measured, parameters included; None for budget_gb."""
    patch_fits_reference_batch: bool = False
    """Shrink the patch until the reference batch fits (residual-encoder planners), not until a batch of 2 fits."""
    least_view: float | None = added_later(None, gt=0, le=1)
    """Share of the median image that a patch must see at the least. Where it sees less at full resolution, 3d_lowres is planned with voxels
    up to 2 times as large, and is trained unless another configuration is asked for. None keeps nnU-Net's rule."""


class TrainingSettings(Record):
    """How a network is trained. Defaults are nnU-Net's."""

    optimizer: Literal["sgd", "adamw"] = "sgd"
    learning_rate: float = Field(0.01, gt=0)
    weight_decay: float = Field(3e-5, ge=0)
    momentum: float = Field(0.99, ge=0, lt=1)
    """Momentum of SGD, in Nesterov's form."""
    epochs: int = Field(1000, ge=1)
    iterations_per_epoch: int = Field(250, ge=1)
    patches_per_case: int | None = Field(None, ge=1)
    """When set, an epoch is this many patches of every training case, and iterations_per_epoch its upper limit."""
    validation_batches: int = Field(50, ge=1)
    schedule: Literal["poly", "cosine"] = "poly"
    """How the learning rate falls to 0 over the training."""
    warmup_iterations: int = Field(0, ge=0)
    """Iterations over which the learning rate first rises."""
    foreground_share: float = Field(0.33, ge=0, le=1)
    """Share of each batch, its last patches, that is centred on a foreground voxel."""
    foreground_weights: dict[str, NonNegativeFloat] = {}
    """How often such a patch is centred on a label, by name, against 1 for each label that is not named."""
    foreground_by: Literal["case", "label"] = "case"
    """What is drawn first for such a patch: the case, among all of them, or the label, and then a case that has it."""
    loss: tuple[LossTerm, ...] = Field(DEFAULT_LOSS, min_length=1)
    """Terms that are added up, each with its weight (docs/stages/training.md)."""
    parts: int = Field(1, ge=1)
    """Parts that a batch goes through the network in, so that it needs less memory; gradients are summed."""
    average_decay: float | None = Field(None, gt=0, lt=1)
    """When set, weights are averaged exponentially over iterations, and the average is what is validated and kept."""
    patience_epochs: int | None = Field(None, ge=1)
    """When set, training stops after so many epochs without a better average of validation Dice; the weights of the best one are kept."""
    gradient_clip: float = Field(12.0, gt=0)
    checkpoint_minutes: float = Field(5.0, gt=0)
    augmentation: AugmentationSettings = AugmentationSettings()


class InferenceSettings(Record):
    """How images are predicted. Defaults are nnU-Net's."""

    skip_empty_windows: bool = False
    """Pass over windows in which every voxel of every channel is air (CT) or lies outside the non-zero region (images normalised inside
    it): they are background. Images with another normalisation have no such windows."""


class Recipe(Record):
    """A named set of choices."""

    name: FolderName
    """Names the folder of what is trained with it."""
    description: str
    network: NetworkChoice = NetworkChoice()
    planner: PlannerSettings = PlannerSettings()
    training: TrainingSettings = TrainingSettings()
    inference: InferenceSettings = InferenceSettings()


def recipe_names() -> list[str]:
    """Names of the recipes that come with segpipe."""
    return sorted(p.stem for p in shipped_plans().glob("*.toml") if not p.stem.startswith("distill"))


def load_recipe(name_or_path: str | Path | Recipe) -> Recipe:
    """Load a recipe by the name of a shipped one, or from a TOML file.

    Raises
    ------
    RecipeError
        If there is no such recipe, or it holds an unknown key or a wrong value.
    """
    if isinstance(name_or_path, Recipe):
        return name_or_path
    return read_recipe(name_or_path, Recipe, recipe_names(), RecipeError, "docs/stages/planning.md")


def read_recipe(
    name_or_path: str | Path, kind: type[AnyRecipe], known: list[str], error: type[SegpipeError], page: str
) -> AnyRecipe:
    """Read a recipe of any kind, by the name of a shipped one or from a TOML file; ``error`` says what is wrong with it.

    Parameters
    ----------
    name_or_path : str or Path
    kind : type
    known : list of str
        Names of the shipped ones of this kind.
    error : type
        Raised if there is no such recipe, or it holds an unknown key or a wrong value.
    page : str
        Where recipes of this kind are described.
    """
    path = Path(name_or_path)
    if path.suffix != ".toml":
        path = shipped_plans() / f"{name_or_path}.toml"
    if not lies(path) or (path.parent == shipped_plans() and path.stem not in known):
        raise error(
            f"recipe {str(name_or_path)!r}: not found{did_you_mean(str(name_or_path), known)}; "
            f"known are {', '.join(known)}, or give the path of a .toml file"
        )
    try:
        return kind.model_validate(tomllib.loads(read_text(path)))
    except (tomllib.TOMLDecodeError, RecursionError) as wrong:
        raise error(f"{path}: is not TOML: {wrong}") from wrong
    except ValidationError as wrong:
        raise error(f"{path}: {first_problem(wrong)}; see {page}") from wrong


def shipped_plans() -> Path:
    """Folder of the recipes that come with segpipe; those of distillation are called distill*."""
    packaged = Path(__file__).parents[1] / "plans"
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / "plans"
