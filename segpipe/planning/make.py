"""From a fingerprint and a recipe to a plan. Pure: the same input gives the same bytes."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segpipe.dataset.fingerprint.schema import Fingerprint
from segpipe.errors import NetworkError, PlanError
from segpipe.planning.class_weights import with_class_weights
from segpipe.planning.configuration import Sized, size_configuration
from segpipe.planning.design import Channels, Design, Probe
from segpipe.planning.explain import in_mm, sizing_decisions
from segpipe.planning.guard import make_guard
from segpipe.planning.recipe import Recipe, load_recipe
from segpipe.planning.rules import (
    axis_order,
    masks_for_normalisation,
    median_shape,
    normalisation_of,
    sided_labels,
    target_spacing,
)
from segpipe.planning.schema import Configuration, Decision, Normalisation, Plan
from segpipe.planning.usual import usual_cases

LOWRES_THRESHOLD = 0.25
"""A patch that sees less than this share of the median image calls for a low-resolution stage."""
LOWRES_STEP = 1.03
MOST_COARSENING = 2.0
"""Largest factor by which an axis is coarsened where a recipe asks for a least view."""

_NNUNET_PRESETS = {
    "default": "ExperimentPlanner",
    "resenc_m": "nnUNetPlannerResEncM",
    "resenc_l": "nnUNetPlannerResEncL",
    "resenc_xl": "nnUNetPlannerResEncXL",
}


def make_plan(
    fingerprint: Fingerprint,
    recipe: str | Path | Recipe = "default",
    *,
    spacing_mm: tuple[float, float, float] | None = None,
    probe: Probe | None = None,
) -> Plan:
    """Plan all configurations that follow from a fingerprint.

    Parameters
    ----------
    fingerprint : Fingerprint
        Measurements on the dataset.
    recipe : str, Path or Recipe
        A shipped recipe's name, a TOML file, or the recipe itself.
    spacing_mm : tuple of float, optional
        Target spacing (z, y, x) instead of the planned one.
    probe : Probe, optional
        Measures the networks that are no planned U-Net.

    Raises
    ------
    RecipeError
        If the recipe is missing or wrong.
    NetworkError
        If its network is not known or an option is wrong.
    PlanError
        If the fingerprint has no case, or the wished spacing is not positive.
    """
    chosen = load_recipe(recipe)
    if not fingerprint.cases:
        raise PlanError("the fingerprint holds no case; nothing can be planned")
    _require_labels(chosen, fingerprint.labels.names)
    if spacing_mm is not None:
        # The spacing is asked for: it is not given up for a wider view.
        planner = chosen.planner.model_copy(update={"least_view": None})
        chosen = chosen.model_copy(update={"planner": planner})
    return _Planner(fingerprint, chosen, _target(fingerprint, spacing_mm), probe).plan()


def _require_labels(recipe: Recipe, names: tuple[str, ...]) -> None:
    weights = recipe.training.foreground_weights
    unknown = [name for name in weights if name not in names]
    if unknown:
        raise PlanError(
            f"recipe {recipe.name}: training.foreground_weights names {', '.join(unknown)}; the dataset has {', '.join(names)}"
        )
    if not any(weights.get(name, 1.0) for name in names):
        raise PlanError(
            f"recipe {recipe.name}: training.foreground_weights is 0 for every label; give one of them more"
        )


def _target(
    fingerprint: Fingerprint, wished: tuple[float, float, float] | None
) -> tuple[NDArray[np.float64], Decision]:
    observed = np.median([c.spacing_mm for c in fingerprint.cases], axis=0)
    if wished is not None:
        if min(wished) <= 0:
            raise PlanError(f"--spacing {wished}: expected three positive numbers in mm (z, y, x)")
        return np.array(wished, dtype=np.float64), Decision(
            rule="target spacing", chosen=in_mm(wished), because="it was asked for"
        )
    target, refined = target_spacing(fingerprint.cases)
    because = f"median spacing {in_mm(tuple(observed))}"
    if refined:
        because += "; its coarse axis is over 3 times coarser with under a third of the voxels: 10th percentile there"
    shape = np.median([c.shape_after_crop for c in fingerprint.cases], axis=0)
    coarse = int(np.argmax(observed))
    others = [a for a in range(3) if a != coarse]
    steps = (
        f"median spacing {in_mm(tuple(observed))}, median shape after cropping {'x'.join(f'{n:g}' for n in shape)} (z, y, x)",
        f"coarsest axis: {'zyx'[coarse]}, {observed[coarse] / max(observed[others]):.2f} times coarser than the next (over 3 counts)",
        f"its voxels: {shape[coarse]:g}, the fewest of the others {min(shape[others]):g} (over 3 times as many counts)",
        "both count: the 10th percentile of that axis is taken" if refined else "not both count: the median is taken",
    )
    return target, Decision(rule="target spacing", chosen=in_mm(tuple(target)), because=because, steps=steps)


class _Planner:
    """The values that every rule shares, computed once."""

    def __init__(
        self,
        fingerprint: Fingerprint,
        recipe: Recipe,
        target: tuple[NDArray[np.float64], Decision],
        probe: Probe | None,
    ) -> None:
        self.fingerprint, self.recipe, self.probe = fingerprint, recipe, probe
        self.problems: list[str] = []
        self.training, weights_decisions = with_class_weights(recipe.training, fingerprint)
        spacing, spacing_decision = target
        self.forward, self.backward = axis_order(spacing)
        order = list(self.forward)
        self.spacing = spacing[order]
        self.median = median_shape(fingerprint.cases, spacing)[order]
        self.dataset_voxels = float(np.prod(self.median) * fingerprint.n_training_cases)
        self.schemes: tuple[Normalisation, ...] = tuple(normalisation_of(name) for name in fingerprint.channel_names)
        self.masks = masks_for_normalisation(self.schemes, fingerprint.median_relative_size_after_cropping)
        self.guard = make_guard(fingerprint.cases)
        self.usual = usual_cases(fingerprint.cases, fingerprint.labels)
        self.decisions = [
            spacing_decision,
            self._order_decision(),
            self._normalisation_decision(),
            self._guard_decision(),
            self._memory_decision(),
            *weights_decisions,
        ]
        self.mirror_axes = self._mirror_axes()

    def plan(self) -> Plan:
        configurations = self._if_trainable("2d", self._two_dimensional)
        if self.median[0] != 1:
            configurations |= self._if_trainable("3D configurations", self._three_dimensional)
        else:
            self._decide("3D configurations", "none", "the median image has one slice")
        if not configurations:
            raise PlanError("; ".join(dict.fromkeys(self.problems)))
        spacing, shape = medians(self.fingerprint, self.forward)
        return Plan(
            dataset_name=self.fingerprint.dataset_name,
            fingerprint_digest=self.fingerprint.digest(),
            recipe=self.recipe.name,
            planner_preset=_NNUNET_PRESETS.get(self.recipe.name, self.recipe.name),
            transpose_forward=self.forward,
            transpose_backward=self.backward,
            channel_names=self.fingerprint.channel_names,
            labels=self.fingerprint.labels,
            resample_channels=self.fingerprint.resample_channels,
            digits=self.fingerprint.digits,
            original_median_spacing_mm=spacing,
            original_median_shape=shape,
            intensities=self.fingerprint.intensities,
            guard=self.guard,
            usual=self.usual,
            inference=self.recipe.inference,
            configurations=configurations,
            mirror_axes=self.mirror_axes,
            planner=self.recipe.planner,
            training=self.training,
            decisions=tuple(self.decisions),
        )

    def _if_trainable(self, name: str, make: Callable[[], dict[str, Configuration]]) -> dict[str, Configuration]:
        """Return configurations, or none where the recipe's network cannot be trained in them; a planned U-Net always can."""
        try:
            return make()
        except (NetworkError, PlanError) as error:
            if not self._design(self.spacing).is_measured:
                raise
            self.problems.append(str(error))
            self._decide(name, "none", str(error))
            return {}

    def _two_dimensional(self) -> dict[str, Configuration]:
        spacing, median = self.spacing[1:], self.median[1:]
        return {"2d": self._configuration("2d", spacing, median, self.dataset_voxels, batch_dice=True)}

    def _three_dimensional(self) -> dict[str, Configuration]:
        full = self._configuration("3d_fullres", self.spacing, self.median, self.dataset_voxels, batch_dice=False)
        lowres = self._lowres(full)
        if lowres is None:
            return {"3d_fullres": full}
        full = full.model_copy(update={"batch_dice": True})
        cascade = full.model_copy(update={"name": "3d_cascade_fullres", "previous_stage": "3d_lowres"})
        return {"3d_lowres": lowres, "3d_fullres": full, "3d_cascade_fullres": cascade}

    def _lowres(self, full: Configuration) -> Configuration | None:
        """Coarsen until the patch sees enough of the median image; None where full resolution already does."""
        least = self.recipe.planner.least_view or LOWRES_THRESHOLD
        patch_voxels, voxels = float(np.prod(full.patch_size)), float(np.prod(self.median))
        seen = patch_voxels / voxels
        if seen >= least:
            self._decide(
                "low-resolution stage",
                "none",
                f"the patch sees {seen:.0%} of the median image, at least {least:.0%}",
            )
            return None
        spacing = self.spacing.copy()
        while patch_voxels / voxels < least:
            coarser = self._coarser(spacing)
            if coarser is None:
                break
            spacing = coarser
            median = self.spacing / spacing * self.median
            voxels = float(np.prod(median))
            shape = np.array([round(float(n)) for n in median])
            sized = self._size(spacing, shape, voxels * self.fingerprint.n_training_cases)
            patch_voxels = float(np.prod(sized.topology.patch_size))
        if self.recipe.planner.least_view is None and np.prod(self.median) / voxels < 2:
            self._decide(
                "low-resolution stage",
                "none",
                f"the patch sees {seen:.0%} of the median image, but half its voxels would be kept: too alike",
            )
            return None
        if self.recipe.planner.least_view is not None and _view(sized.topology.patch_size, shape) <= _view(
            full.patch_size, np.array(full.median_shape)
        ):
            # Where the patch was only larger than a rounded image.
            self._decide(
                "low-resolution stage",
                "none",
                f"the patch sees {seen:.0%} of the median image, and no more of it with larger voxels",
            )
            return None
        self._decide("low-resolution stage", in_mm(tuple(spacing)), self._view_because(seen, patch_voxels / voxels))
        return self._as_configuration("3d_lowres", spacing, shape, sized, batch_dice=False)

    def _coarser(self, spacing: NDArray[np.float64]) -> NDArray[np.float64] | None:
        """Coarsen the axes that are finer than the coarsest, else all; None where they may become no coarser."""
        wide = self.recipe.planner.least_view is not None
        # nnU-Net lets them stay up to 2 times finer.
        finer = spacing.max() / spacing > (LOWRES_STEP if wide else 2)
        axes = finer if finer.any() else np.ones_like(finer)
        most = self.spacing * (MOST_COARSENING if wide else np.inf)
        # Thick slices are not made thicker because the other axes may become no coarser.
        if not (axes & (spacing < most)).any():
            return None
        return np.minimum(np.where(axes, spacing * LOWRES_STEP, spacing), most)

    def _view_because(self, before: float, after: float) -> str:
        least = self.recipe.planner.least_view
        if least is None:
            return f"the patch sees only {before:.0%} of the median image, less than {LOWRES_THRESHOLD:.0%}"
        return (
            f"at full resolution the patch sees {before:.0%} of the median image, less than {least:.0%}; here {min(after, 1):.0%}, "
            f"with voxels at most {MOST_COARSENING:g} times as large: field of view before resolution"
        )

    def _configuration(
        self, name: str, spacing: NDArray[np.float64], median: NDArray[np.float64], voxels: float, *, batch_dice: bool
    ) -> Configuration:
        return self._as_configuration(name, spacing, median, self._size(spacing, median, voxels), batch_dice=batch_dice)

    def _size(self, spacing: NDArray[np.float64], median: NDArray[np.float64], voxels: float) -> Sized:
        return size_configuration(tuple(median.tolist()), voxels, self._design(spacing))

    def _design(self, spacing: NDArray[np.float64]) -> Design:
        channels, settings = Channels.of(self.fingerprint), self.recipe.planner
        return Design(self.recipe.network, settings, channels, tuple(spacing.tolist()), self.probe)

    def _as_configuration(
        self, name: str, spacing: NDArray[np.float64], median: NDArray[np.float64], sized: Sized, *, batch_dice: bool
    ) -> Configuration:
        self.decisions += sizing_decisions(name, tuple(float(m) for m in median), sized, self._design(spacing))
        return Configuration(
            name=name,
            spacing_mm=tuple(spacing.tolist()),
            median_shape=tuple(float(m) for m in median),
            patch_size=sized.topology.patch_size,
            batch_size=sized.batch_size,
            batch_dice=batch_dice,
            normalisation=self.schemes,
            use_mask_for_norm=self.masks,
            network=sized.network,
            estimated_memory_gb=sized.memory_gb,
        )

    def _order_decision(self) -> Decision:
        moved = self.forward != (0, 1, 2)
        because = "the coarsest axis comes first" if moved else "the coarsest axis is already first"
        return Decision(rule="axis order", chosen=str(self.forward), because=because)

    def _normalisation_decision(self) -> Decision:
        chosen = ", ".join(
            f"{c}: {s}{' in mask' if m else ''}"
            for c, s, m in zip(self.fingerprint.channel_names, self.schemes, self.masks, strict=True)
        )
        kept = self.fingerprint.median_relative_size_after_cropping
        return Decision(
            rule="normalisation",
            chosen=chosen,
            because=f"by channel name; cropping keeps {kept:.0%} of the voxels (mask under 75%)",
        )

    def _guard_decision(self) -> Decision:
        steps = tuple(
            f"{name}: medians of cases from {c.low[3]:.4g} to {c.high[3]:.4g}, usual range {c.span:.4g}, "
            f"tolerated excess {c.tolerance:.0%} of it"
            for name, c in zip(self.fingerprint.channel_names, self.guard.channels, strict=False)
        )
        order = (
            "another order of channels is told" if self.guard.tells_order else "the order of channels cannot be told"
        )
        return Decision(
            rule="intensity guard",
            chosen=f"{len(self.guard.channels)} channel(s) judged in prediction",
            because=f"each training case held against the others; {order}" if steps else "no percentiles were measured",
            steps=steps,
        )

    def _mirror_axes(self) -> tuple[int, ...]:
        """Axes after the transpose, of those the recipe names in the anatomy."""
        wished = self.recipe.training.augmentation.mirror
        pair = sided_labels(self.fingerprint.labels.names)
        if wished != "auto":
            axes, because = wished, f"recipe {self.recipe.name}"
        elif pair:
            axes, because = ("y", "z"), f"{pair[0]} and {pair[1]} are each other's mirror image: x is left out"
        else:
            axes, because = ("x", "y", "z"), "no two labels differ in their side only"
        names = ("z", "y", "x")
        self._decide("mirror axes", ", ".join(sorted(axes)) or "none", because)
        return tuple(new for new, old in enumerate(self.forward) if names[old] in axes)

    def _memory_decision(self) -> Decision:
        settings = self.recipe.planner
        if settings.memory == "bytes":
            chosen = f"bytes, {settings.activation_bytes} an activation"
            because = f"recipe {self.recipe.name}: input channels, parameters and number type count"
        else:
            chosen, because = "elements", f"recipe {self.recipe.name}: nnU-Net's estimate, for the same plan"
        limit = settings.max_batch or "none"
        steps = (
            f"budget {settings.budget_gb:g} GB",
            f"batch: at least {settings.min_batch}, at most {settings.dataset_cover:.0%} of the dataset's voxels, upper limit {limit}",
        )
        return Decision(rule="memory estimate", chosen=chosen, because=because, steps=steps)

    def _decide(self, rule: str, chosen: str, because: str, steps: tuple[str, ...] = ()) -> None:
        self.decisions.append(Decision(rule=rule, chosen=chosen, because=because, steps=steps))


def medians(fingerprint: Fingerprint, order: tuple[int, int, int]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Median spacing in mm and median shape of the cases, in an order of axes."""
    observed = np.array([c.spacing_mm for c in fingerprint.cases])
    shapes = np.array([c.shape_after_crop for c in fingerprint.cases])
    spacing, shape = (np.median(a, axis=0)[list(order)] for a in (observed, shapes))
    return tuple(float(v) for v in spacing), tuple(float(v) for v in shape)


def _view(patch: tuple[int, ...], shape: NDArray[np.float64]) -> float:
    """Return the part of an image that a patch shows; what of the patch lies beyond the image shows nothing."""
    return float(np.prod(np.minimum(patch, shape) / shape))
