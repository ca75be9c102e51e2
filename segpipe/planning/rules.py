"""Target spacing, axis order, shapes and normalisation from the fingerprint. Pure; nnU-Net 2's rules.

Every rule is described in docs/stages/planning.md.
"""

import re

import numpy as np
from numpy.typing import NDArray

from segpipe.dataset.fingerprint.schema import CaseFingerprint
from segpipe.planning.schema import Normalisation

ANISOTROPY_THRESHOLD = 3.0
"""Ratio of spacings from which an axis counts as anisotropic."""

_SCHEMES: dict[str, Normalisation] = {
    "ct": "ct",
    "nonorm": "none",
    "zscore": "zscore",
    "rescale_to_0_1": "rescale_0_1",
    "rgb_to_0_1": "rgb_0_1",
}


def target_spacing(cases: tuple[CaseFingerprint, ...]) -> tuple[NDArray[np.float64], bool]:
    """Target spacing (z, y, x) at full resolution, and whether an anisotropic axis was refined.

    The median spacing; but where one axis is more than three times coarser than the others and has less than a third of
    their voxels, the 10th percentile of that axis, kept above the others.
    """
    spacings = np.array([c.spacing_mm for c in cases], dtype=np.float64)
    shapes = np.array([c.shape_after_crop for c in cases], dtype=np.float64)
    target: NDArray[np.float64] = np.percentile(spacings, 50, axis=0)
    shape = np.percentile(shapes, 50, axis=0)
    worst = int(np.argmax(target))
    others = [a for a in range(3) if a != worst]
    finest_of_others = max(target[others])
    anisotropic = target[worst] > ANISOTROPY_THRESHOLD * finest_of_others
    few_voxels = shape[worst] * ANISOTROPY_THRESHOLD < min(shape[others])
    if not (anisotropic and few_voxels):
        return target, False
    refined = float(np.percentile(spacings[:, worst], 10))
    target[worst] = max(refined, finest_of_others + 1e-5) if refined < finest_of_others else refined
    return target, True


def sided_labels(names: tuple[str, ...]) -> tuple[str, str] | None:
    """Return two labels that differ only in their side (kidney_left and kidney_right, L-ear and R-ear), if there are any."""
    sideless: dict[str, str] = {}
    for name in names:
        # kidneyLeft is two words, and leftkidney begins with a side; copyright does not.
        spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name).lower()
        words = [w for w in re.split(r"[^a-z0-9]+", re.sub(r"\b(left|right)", r"\1 ", spaced)) if w]
        sides = ["side" if w in ("left", "right", "l", "r", "lt", "rt", "lh", "rh") else w for w in words]
        key = " ".join(sides)
        if "side" in sides and key in sideless:
            return sideless[key], name
        sideless[key] = name
    return None


def axis_order(spacing: NDArray[np.float64]) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Bring the coarsest axis first: forward and backward transposition."""
    worst = int(np.argmax(spacing))
    forward = [worst, *(a for a in range(3) if a != worst)]
    backward = [int(np.flatnonzero(np.array(forward) == a)[0]) for a in range(3)]
    return (forward[0], forward[1], forward[2]), (backward[0], backward[1], backward[2])


def median_shape(cases: tuple[CaseFingerprint, ...], spacing: NDArray[np.float64]) -> NDArray[np.float64]:
    """Median over cases of the shape (z, y, x) after resampling to ``spacing``; may hold halves."""
    shapes = [
        [round(s / t * n) for s, t, n in zip(case.spacing_mm, spacing.tolist(), case.shape_after_crop, strict=True)]
        for case in cases
    ]
    median: NDArray[np.float64] = np.median(np.array(shapes, dtype=np.float64), axis=0)
    return median


def normalisation_of(channel_name: str) -> Normalisation:
    """Scheme for a channel by its name (any case); z-score unless the name is one of nnU-Net's keywords."""
    return _SCHEMES.get(channel_name.casefold(), "zscore")


def masks_for_normalisation(schemes: tuple[Normalisation, ...], median_relative_size: float) -> tuple[bool, ...]:
    """Normalise inside the non-zero region where cropping takes away more than a quarter, for z-score channels."""
    return tuple(scheme == "zscore" and median_relative_size < 3 / 4 for scheme in schemes)
