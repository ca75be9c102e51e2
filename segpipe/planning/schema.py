"""The plan artefact: what was chosen, and why."""

from typing import Annotated, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from segpipe.core.artefact import Artefact, FolderName, Record, VariantName, added_later
from segpipe.core.labels import Labels
from segpipe.core.text import did_you_mean
from segpipe.dataset.fingerprint.schema import IntensityStatistics
from segpipe.dataset.names import Digits
from segpipe.errors import PlanError
from segpipe.networks.spec import Count, NetworkChoice, NetworkSpec
from segpipe.planning.guard import IntensityGuard
from segpipe.planning.recipe import InferenceSettings, PlannerSettings, TrainingSettings
from segpipe.planning.usual import UsualCases

Normalisation = Literal["ct", "zscore", "none", "rescale_0_1", "rgb_0_1"]


class Decision(Record):
    """What one rule did."""

    rule: str
    chosen: str
    because: str
    steps: tuple[str, ...] = ()
    """How it came to that, for `segpipe plan --explain`."""


class Configuration(Record):
    """One way to see the data: its resolution, patch, batch and network. Tuples are in the plan's transposed axis order."""

    model_config = ConfigDict(allow_inf_nan=False)

    name: FolderName
    spacing_mm: tuple[Annotated[float, Field(gt=0)], ...]
    """Target spacing, 3 values, or 2 in-plane (slices keep their own distance)."""
    median_shape: tuple[Annotated[float, Field(gt=0)], ...]
    patch_size: tuple[Count, ...] = Field(min_length=2, max_length=3)
    batch_size: Count
    batch_dice: bool
    """Dice over the whole batch instead of sample by sample."""
    normalisation: tuple[Normalisation, ...]
    """One a channel."""
    use_mask_for_norm: tuple[bool, ...]
    """Normalise inside the non-zero region only, one a channel."""
    network: NetworkSpec
    estimated_memory_gb: float = Field(ge=0)
    """Device memory of a training step, by the planner's reference."""
    previous_stage: FolderName | None = None
    """Configuration whose segmentation is a further input (cascade)."""

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        for name in ("spacing_mm", "median_shape"):
            if len(getattr(self, name)) != self.dims:
                raise ValueError(
                    f"{name} has {len(getattr(self, name))} values; expected {self.dims}, as patch_size has"
                )
        if self.network.dims != self.dims:
            raise ValueError(f"the network has {self.network.dims} axes; expected {self.dims}, as patch_size has")
        if len(self.use_mask_for_norm) != len(self.normalisation):
            raise ValueError(
                f"use_mask_for_norm has {len(self.use_mask_for_norm)} values; expected {len(self.normalisation)}, as normalisation has"
            )
        return self

    @property
    def dims(self) -> int:
        """2 or 3."""
        return len(self.patch_size)


class Plan(Artefact):
    """Everything that was decided from a fingerprint and a recipe."""

    dataset_name: str
    fingerprint_digest: str
    recipe: VariantName
    planner_preset: VariantName | Literal[""]
    """Name of nnU-Net's planner with the same rules, for export."""
    orientation: Literal["canonical", "as_stored"] = "canonical"
    transpose_forward: tuple[int, int, int]
    """Axis of the oriented array that becomes each axis of the plan."""
    transpose_backward: tuple[int, int, int]
    channel_names: tuple[str, ...] = Field(min_length=1)
    labels: Labels
    resample_channels: bool = False
    """Channels on other grids are brought onto the first one's, in prediction too."""
    digits: Digits = added_later("channel")
    """What digits such as _0001 at the end of the training images' names were; they are the same in prediction."""
    original_median_spacing_mm: tuple[Annotated[float, Field(gt=0, allow_inf_nan=False)], ...]
    original_median_shape: tuple[Annotated[float, Field(gt=0, allow_inf_nan=False)], ...]
    intensities: tuple[IntensityStatistics, ...]
    configurations: dict[str, Configuration] = Field(min_length=1)
    guard: IntensityGuard = IntensityGuard()
    """What images of the training kind look like."""
    usual: UsualCases = UsualCases()
    """Spacings and volumes that the training cases had."""
    labels_are_inside: bool = False
    """Voxels with a label count as inside the non-zero region when an image is normalised inside it: nnU-Net's rule, which reaches
    prediction where the labels are a cascade's first stage's. Of imported models only; segpipe's own never look at labels there."""
    mirror_axes: tuple[Literal[0, 1, 2], ...]
    """Axes (z, y, x after the transpose) along which mirror images are alike: mirrored in training and at inference."""
    planner: PlannerSettings | None = None
    """How patches and batches were sized; a plan for another network is sized the same way."""
    derived_from: str | None = None
    """sha256 of the workspace's plan, where this is that plan with another network."""
    asked_network: NetworkChoice | None = None
    """The network that was asked for instead of the plan's."""
    training: TrainingSettings
    inference: InferenceSettings = InferenceSettings()
    decisions: tuple[Decision, ...]

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        forward, back = self.transpose_forward, self.transpose_backward
        if sorted(forward) != [0, 1, 2] or any(forward[back[axis]] != axis for axis in range(3) if 0 <= back[axis] < 3):
            raise ValueError(
                f"transpose_forward {list(forward)} and transpose_backward {list(back)} do not undo each other"
            )
        if sorted(back) != [0, 1, 2]:
            raise ValueError(f"transpose_backward is {list(back)}; expected each axis once")
        if len(set(self.mirror_axes)) < len(self.mirror_axes):
            raise ValueError(f"mirror_axes {list(self.mirror_axes)} name an axis twice")
        if not self.labels.targets:
            raise ValueError("labels name nothing but the background")
        n = len(self.channel_names)
        if len(self.intensities) not in (0, n):
            raise ValueError(f"intensities are of {len(self.intensities)} channels; expected {n}, as channel_names has")
        for name, configuration in self.configurations.items():
            if configuration.name != name:
                raise ValueError(f"configuration {name!r} calls itself {configuration.name!r}")
            if len(configuration.normalisation) != n:
                raise ValueError(
                    f"configuration {name}: normalisation has {len(configuration.normalisation)} values; expected {n}, one a channel"
                )
        return self

    def configuration(self, name: str) -> Configuration:
        """Return a configuration.

        Raises
        ------
        PlanError
            If the plan has none of that name.
        """
        if name not in self.configurations:
            near = did_you_mean(name, self.configurations)
            raise PlanError(f"configuration {name!r}: this plan has {', '.join(self.configurations)}{near}")
        return self.configurations[name]

    def n_inputs(self, configuration: Configuration) -> int:
        """Return the channels of a configuration's network: the image's, and in a cascade one for each label that was found before."""
        return len(self.channel_names) + (0 if configuration.previous_stage is None else len(self.labels.values) - 1)

    def arrays_of(self, name: str) -> str:
        """Return the configuration whose prepared images a configuration is trained on: a cascade's second stage has no own."""
        return "3d_fullres" if self.configuration(name).previous_stage else name

    def mirror_axes_of(self, configuration: Configuration) -> tuple[int, ...]:
        """Mirror axes of a configuration's patch, which has no first axis in 2D."""
        missing = 3 - configuration.dims
        return tuple(a - missing for a in self.mirror_axes if a >= missing)

    def default_configuration(self) -> str:
        """Return the configuration to train when none is asked for: the wide view of a recipe that has one, else 3D, else 2D."""
        wide = self.planner is not None and self.planner.least_view is not None
        names = (*(("3d_lowres",) if wide else ()), "3d_fullres")
        return next((name for name in names if name in self.configurations), "2d")
