"""One case from canonical voxels to the arrays a network takes, and what undoes it. Pure."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from segpipe.fingerprint.measure import bounding_box, nonzero_mask
from segpipe.geometry import resampled_shape
from segpipe.io.formats import smallest_label_dtype
from segpipe.planning.schema import Configuration, Plan
from segpipe.preprocessing.normalise import normalise
from segpipe.preprocessing.resample import resample_image, resample_labels, separate_axis
from segpipe.volume import Volume

Triple = tuple[int, int, int]


@dataclass(frozen=True)
class Placement:
    """Where a prepared array came from, in the plan's axis order."""

    shape_before_crop: Triple
    start: Triple
    """First voxel of the crop."""
    shape_after_crop: Triple
    spacing_mm: tuple[float, float, float]
    """Native spacing."""
    apart: int | None
    """Axis that was interpolated apart."""


@dataclass(frozen=True)
class Prepared:
    """A case ready for the network."""

    image: NDArray[np.float32]
    """(C, Z, Y, X), normalised, at the configuration's spacing."""
    segmentation: NDArray[np.int16] | None
    """(Z, Y, X) class indices, -1 outside the non-zero region."""
    placement: Placement


def target_spacing(configuration: Configuration, native_mm: tuple[float, ...]) -> tuple[float, ...]:
    """Spacing (z, y, x) to resample to; a 2D configuration keeps the distance of the slices."""
    return configuration.spacing_mm if configuration.dims == 3 else (native_mm[0], *configuration.spacing_mm)


def prepare(image: Volume, labels: NDArray[np.int32] | None, plan: Plan, configuration: Configuration) -> Prepared:
    """Transpose, crop to the non-zero region, normalise, resample.

    Parameters
    ----------
    image : Volume
        Canonical orientation, (C, Z, Y, X).
    labels : ndarray of int32, shape (Z, Y, X), or None
        Stored label values on the same axes.
    plan : Plan
    configuration : Configuration

    Raises
    ------
    CaseError
        If the image has no non-zero voxel, or does not suit its normalisation.
    """
    order = plan.transpose_forward
    voxels = image.array.transpose(0, *(1 + a for a in order))
    z, y, x = (image.grid.spacing_mm[a] for a in order)
    spacing = (z, y, x)
    mask = nonzero_mask(voxels)
    box = bounding_box(mask)
    inside = mask[box]
    cropped = np.ascontiguousarray(voxels[(slice(None), *box)])
    normalised = normalise(
        cropped, configuration.normalisation, configuration.use_mask_for_norm, inside, plan.intensities
    )

    to_spacing = target_spacing(configuration, spacing)
    shape = resampled_shape(inside.shape, spacing, to_spacing)
    apart = separate_axis(spacing, to_spacing)
    segmentation = None
    if labels is not None:
        classes = class_indices(labels.transpose(order)[box], plan.label_values)
        classes[(classes == 0) & ~inside] = -1
        segmentation = resample_labels(classes, shape, apart=apart)
    placement = Placement(
        _triple(voxels.shape[1:]), _triple([s.start for s in box]), _triple(inside.shape), spacing, apart
    )
    return Prepared(resample_image(normalised, shape, apart=apart), segmentation, placement)


def class_indices(labels: NDArray[np.int32], label_values: tuple[int, ...]) -> NDArray[np.int16]:
    """Map stored label values to class indices 0..K."""
    return np.searchsorted(np.asarray(label_values), labels).astype(np.int16)


def stored_values(classes: NDArray[np.integer], label_values: tuple[int, ...]) -> NDArray[np.unsignedinteger]:
    """Map class indices back to stored label values, in the smallest unsigned type that holds them all."""
    table = np.asarray(label_values, dtype=smallest_label_dtype(max(label_values)))
    values: NDArray[np.unsignedinteger] = table[classes]
    return values


def _triple(values: tuple[int, ...] | list[int]) -> Triple:
    z, y, x = (int(v) for v in values)
    return z, y, x
