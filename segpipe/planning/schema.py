"""The plan artefact: what was chosen, and why."""

from typing import Literal

from segpipe.core.artefact import Artefact, Record, added_later
from segpipe.core.labels import Labels
from segpipe.core.text import did_you_mean
from segpipe.dataset.fingerprint.schema import IntensityStatistics
from segpipe.dataset.names import Digits
from segpipe.errors import PlanError
from segpipe.networks.spec import NetworkChoice, NetworkSpec
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

    name: str
    spacing_mm: tuple[float, ...]
    """Target spacing, 3 values, or 2 in-plane (slices keep their own distance)."""
    median_shape: tuple[float, ...]
    patch_size: tuple[int, ...]
    batch_size: int
    batch_dice: bool
    """Dice over the whole batch instead of sample by sample."""
    normalisation: tuple[Normalisation, ...]
    """One a channel."""
    use_mask_for_norm: tuple[bool, ...]
    """Normalise inside the non-zero region only, one a channel."""
    network: NetworkSpec
    estimated_memory_gb: float
    """Device memory of a training step, by the planner's reference."""
    previous_stage: str | None = None
    """Configuration whose segmentation is a further input (cascade)."""

    @property
    def dims(self) -> int:
        """2 or 3."""
        return len(self.patch_size)


class Plan(Artefact):
    """Everything that was decided from a fingerprint and a recipe."""

    dataset_name: str
    fingerprint_digest: str
    recipe: str
    planner_preset: str
    """Name of nnU-Net's planner with the same rules, for export."""
    orientation: Literal["canonical", "as_stored"] = "canonical"
    transpose_forward: tuple[int, int, int]
    """Axis of the oriented array that becomes each axis of the plan."""
    transpose_backward: tuple[int, int, int]
    channel_names: tuple[str, ...]
    labels: Labels
    resample_channels: bool = False
    """Channels on other grids are brought onto the first one's, in prediction too."""
    digits: Digits = added_later("channel")
    """What digits such as _0001 at the end of the training images' names were; they are the same in prediction."""
    original_median_spacing_mm: tuple[float, ...]
    original_median_shape: tuple[float, ...]
    intensities: tuple[IntensityStatistics, ...]
    configurations: dict[str, Configuration]
    guard: IntensityGuard = IntensityGuard()
    """What images of the training kind look like."""
    usual: UsualCases = UsualCases()
    """Spacings and volumes that the training cases had."""
    labels_are_inside: bool = False
    """Voxels with a label count as inside the non-zero region when an image is normalised inside it: nnU-Net's rule, which reaches
    prediction where the labels are a cascade's first stage's. Of imported models only; segpipe's own never look at labels there."""
    mirror_axes: tuple[int, ...]
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
