"""One case from canonical voxels to the arrays a network takes, and what undoes it. Pure."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import label as connected

from segpipe.core.geometry import Box, Shape, bounding_box, resampled_shape, triple
from segpipe.core.labels import OUTSIDE
from segpipe.core.volume import Volume
from segpipe.planning.schema import Configuration, Plan
from segpipe.preprocessing.normalise import normalise
from segpipe.preprocessing.resample import resample_image, resample_labels, separate_axis


@dataclass(frozen=True)
class Placement:
    """Where a prepared array came from, in the plan's axis order."""

    shape_before_crop: Shape
    start: Shape
    """First voxel of the crop."""
    shape_after_crop: Shape
    spacing_mm: tuple[float, float, float]
    """Native spacing."""
    apart_back: int | None
    """Axis that is interpolated apart on the way back: nnU-Net looks at the spacing it comes from first."""

    @property
    def box(self) -> Box:
        """Box of the crop."""
        z, y, x = (slice(s, s + n) for s, n in zip(self.start, self.shape_after_crop, strict=True))
        return z, y, x


@dataclass(frozen=True)
class Prepared:
    """A case ready for the network."""

    image: NDArray[np.float32]
    """(C, Z, Y, X), normalised, at the configuration's spacing."""
    segmentation: NDArray[np.int16] | None
    """(Z, Y, X) indices of label values (segpipe.labels), -1 outside the non-zero region where a channel is normalised inside it."""
    placement: Placement


def target_spacing(configuration: Configuration, native_mm: tuple[float, ...]) -> tuple[float, ...]:
    """Spacing (z, y, x) to resample to; a 2D configuration keeps the distance of the slices."""
    return configuration.spacing_mm if configuration.dims == 3 else (native_mm[0], *configuration.spacing_mm)


def prepare(
    image: Volume, labels: NDArray[np.unsignedinteger] | None, plan: Plan, configuration: Configuration
) -> Prepared:
    """Transpose, crop to the non-zero region, normalise, resample.

    Parameters
    ----------
    image : Volume
        Canonical orientation, (C, Z, Y, X).
    labels : ndarray, shape (Z, Y, X), or None
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
    box = bounding_box((voxels != 0).any(axis=0))
    cropped = voxels[(slice(None), *box)]
    inside = filled((cropped != 0).any(axis=0)) if any(configuration.use_mask_for_norm) else None
    indices = None if labels is None else plan.labels.indices_of(np.ascontiguousarray(labels.transpose(order)[box]))
    if indices is not None and inside is not None and plan.labels_are_inside:
        inside |= indices > 0
    masks = tuple(inside if used else None for used in configuration.use_mask_for_norm)
    normalised = normalise(cropped, configuration.normalisation, masks, plan.intensities)

    to_spacing = target_spacing(configuration, spacing)
    after_crop = triple(cropped.shape[1:])
    shape = resampled_shape(after_crop, spacing, to_spacing)
    apart = separate_axis(spacing, to_spacing)
    segmentation = None
    if indices is not None:
        if inside is not None:
            indices[(indices == 0) & ~inside] = OUTSIDE
        segmentation = resample_labels(indices, shape, apart=apart)
    back = separate_axis(to_spacing, spacing)
    placement = Placement(triple(voxels.shape[1:]), triple([s.start for s in box]), after_crop, spacing, back)
    return Prepared(resample_image(normalised, shape, apart=apart), segmentation, placement)


def filled(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Fill the holes of a mask: the false voxels that no path of faces joins to the border (as scipy's binary_fill_holes, in one pass)."""
    if mask.all():
        return mask
    pieces, n = connected(~mask)
    open_pieces = np.zeros(n + 1, dtype=bool)
    for axis in range(mask.ndim):
        for end in (0, -1):
            open_pieces[np.unique(pieces.take(end, axis=axis))] = True
    open_pieces[0] = False
    result: NDArray[np.bool_] = ~open_pieces[pieces]
    return result
