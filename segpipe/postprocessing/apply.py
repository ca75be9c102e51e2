"""Apply rules to a segmentation: components are looked for in each label's bounding box. Pure."""

from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_fill_holes, distance_transform_edt, generate_binary_structure
from scipy.ndimage import label as connected

from segpipe.core.geometry import bounding_box
from segpipe.core.labels import Labels, Target
from segpipe.errors import SegpipeError
from segpipe.postprocessing.schema import EVERYTHING, Rule

_TOUCHING = generate_binary_structure(3, 3)

Mask = NDArray[np.bool_]
Stored = NDArray[np.integer[Any]]


def apply_rules(segmentation: Stored, spacing_mm: tuple[float, ...], labels: Labels, rules: tuple[Rule, ...]) -> Stored:
    """Return a segmentation with the rules applied, one after the other.

    Parameters
    ----------
    segmentation : ndarray
        (Z, Y, X) of stored label values; left as it is.
    spacing_mm : tuple of float
    labels : Labels
    rules : tuple of Rule

    Raises
    ------
    SegpipeError
        If a rule names a label that there is not.
    """
    result = segmentation.copy()
    for rule in rules:
        _apply(result, rule, prod(spacing_mm), labels)
    return result


def require_known(rules: tuple[Rule, ...], labels: Labels) -> None:
    """Raise SegpipeError if a rule names a label that there is not."""
    for rule in rules:
        if rule.label not in (*labels.names, EVERYTHING):
            raise SegpipeError(
                f"post-processing names the label {rule.label!r}; there are {', '.join(labels.names)}, and {EVERYTHING} for all"
            )


def components(mask: Mask) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Number the connected components of a mask from 1; returns them with their voxels, the first entry for what is not in the mask."""
    numbered, _ = connected(mask, structure=_TOUCHING)
    return numbered, np.bincount(numbered.ravel())


def _apply(result: Stored, rule: Rule, voxel_mm3: float, labels: Labels) -> None:
    require_known((rule,), labels)
    values = labels.values[1:] if rule.label == EVERYTHING else _target(rule.label, labels).values
    mask = np.isin(result, values)
    if not mask.any():
        return
    box = bounding_box(mask)
    part, mask = result[box], mask[box]
    if rule.keep == "largest" or rule.min_mm3 > 0:
        numbered, sizes = components(mask)
        stays = sizes * voxel_mm3 >= rule.min_mm3
        if rule.keep == "largest":
            stays &= np.arange(len(sizes)) == 1 + int(np.argmax(sizes[1:]))
        stays[0] = True
        part[~stays[numbered]] = labels.background
        mask &= stays[numbered]
    if rule.fill_holes:
        # A slice is two-dimensional: along the axis that it does not have everything would be open.
        filled = binary_fill_holes(mask.squeeze()).reshape(mask.shape)
        holes = filled & ~mask & (part == labels.background)
        if rule.label == EVERYTHING:
            # What encloses a hole of the whole foreground may be several labels: each voxel gets the nearest one's.
            nearest = distance_transform_edt(~mask, return_distances=False, return_indices=True)
            part[holes] = part[tuple(nearest)][holes]
        else:
            part[holes] = labels.value_of(rule.label)


def _target(name: str, labels: Labels) -> Target:
    return next(t for t in labels.targets if t.name == name)
