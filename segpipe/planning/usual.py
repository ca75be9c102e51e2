"""Spacings and volumes of the training cases, so that a case unlike them can be reported. Pure."""

from math import prod

from segpipe.core.artefact import Record
from segpipe.core.labels import Labels
from segpipe.dataset.fingerprint.schema import CaseFingerprint

Range = tuple[float, float]

_SPACING_MARGIN = 1.1
"""Scanners round; a spacing this much beyond the training cases' is another protocol."""
_VOLUME_MARGIN = 1.25


class UsualCases(Record):
    """Ranges over the training cases. Empty where they are not known, as of imported models: then nothing is judged."""

    spacing_mm: tuple[Range, ...] = ()
    """Range of the spacing along each axis (z, y, x), in the plan's orientation."""
    volumes_ml: dict[str, Range] = {}
    """Range of the volume of each label or region; from 0 if a case had none."""


def usual_cases(cases: tuple[CaseFingerprint, ...], labels: Labels) -> UsualCases:
    """Measure the ranges on the training cases."""
    if not cases:
        return UsualCases()
    spacings = tuple((min(s), max(s)) for s in zip(*(c.spacing_mm for c in cases), strict=True))
    volumes = {}
    for target in labels.targets:
        seen = [
            sum(c.label_voxels.get(v, 0) for v in target.values) * prod(c.spacing_mm) / 1000
            for c in cases
            # Where nobody labelled some voxels the volume is not known.
            if c.label_voxels and not c.ignored_voxels
        ]
        if seen:
            volumes[target.name] = (round(min(seen), 4), round(max(seen), 4))
    return UsualCases(spacing_mm=spacings, volumes_ml=volumes)


def unusual_spacing(spacing_mm: tuple[float, ...], usual: UsualCases) -> dict[str, str]:
    """Axes whose spacing lies beyond the training cases', with words for it.

    Parameters
    ----------
    spacing_mm : tuple of float
        (z, y, x), in the plan's orientation.
    usual : UsualCases
    """
    return {
        axis: f"spacing along {axis} is {value:.3g} mm, that of training {low:.3g} to {high:.3g} mm"
        for axis, value, (low, high) in zip("zyx", spacing_mm, usual.spacing_mm, strict=False)
        if not low / _SPACING_MARGIN <= value <= high * _SPACING_MARGIN
    }


def unusual_volumes(volumes_ml: dict[str, float], usual: UsualCases) -> dict[str, str]:
    """Labels whose volume lies beyond the training cases', with words for it.

    Parameters
    ----------
    volumes_ml : dict
        Volume of each label; 0 if none was found.
    usual : UsualCases
    """
    return {
        name: f"{name} has {volumes_ml.get(name, 0.0):.3g} ml, in training {low:.3g} to {high:.3g} ml"
        for name, (low, high) in usual.volumes_ml.items()
        if not low / _VOLUME_MARGIN <= volumes_ml.get(name, 0.0) <= high * _VOLUME_MARGIN
    }
