"""Spacings and volumes of the training cases, so that a case unlike them can be reported. Pure."""

from dataclasses import dataclass
from math import prod

from segpipe.core.artefact import Record
from segpipe.core.geometry import Spacing
from segpipe.core.labels import Labels
from segpipe.dataset.fingerprint.measure import flat_axis, widened
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

    Where all training cases were single slices along an axis, the distance of slices means nothing, and that axis is not judged.

    Parameters
    ----------
    spacing_mm : tuple of float
        (z, y, x), in the plan's orientation.
    usual : UsualCases
    """
    flat = flat_axis(usual.spacing_mm)
    return {
        "zyx"[axis]: f"spacing along {'zyx'[axis]} is {value:.3g} mm, that of training {low:.3g} to {high:.3g} mm"
        for axis, (value, (low, high)) in enumerate(zip(spacing_mm, usual.spacing_mm, strict=False))
        if axis != flat and not low / _SPACING_MARGIN <= value <= high * _SPACING_MARGIN
    }


def unusual_volumes(
    voxels: dict[str, int], shape: tuple[int, ...], spacing_mm: Spacing, usual: UsualCases
) -> dict[str, str]:
    """Labels whose volume lies beyond the training cases', with words for it; of single slices their areas are compared.

    A voxel's volume is taken as :func:`usual_cases` took it. Several slices have no counterpart in a training on single slices: then
    nothing is judged.

    Parameters
    ----------
    voxels : dict
        Voxels of each label; 0 if none was found.
    shape : tuple of int
        Shape of the image (z, y, x), in the plan's orientation.
    spacing_mm : tuple of float
        (z, y, x).
    usual : UsualCases
    """
    flat = flat_axis(usual.spacing_mm)
    if flat is not None and shape[flat] > 1:
        return {}
    voxel_mm3 = prod(spacing_mm if flat is None else widened(spacing_mm, flat))
    shown = (
        _Shown("has", "ml", 1.0) if flat is None else _Shown("covers", "mm2", 1000 / widened(spacing_mm, flat)[flat])
    )
    volumes_ml = {name: voxels.get(name, 0) * voxel_mm3 / 1000 for name in usual.volumes_ml}
    return {
        name: shown.words(name, volumes_ml[name], low, high)
        for name, (low, high) in usual.volumes_ml.items()
        if not low / _VOLUME_MARGIN <= volumes_ml[name] <= high * _VOLUME_MARGIN
    }


@dataclass(frozen=True)
class _Shown:
    """How a volume is put into words."""

    verb: str
    unit: str
    per_ml: float

    def words(self, name: str, found_ml: float, low_ml: float, high_ml: float) -> str:
        found, low, high = (self.per_ml * ml for ml in (found_ml, low_ml, high_ml))
        return f"{name} {self.verb} {found:.3g} {self.unit}, in training {low:.3g} to {high:.3g} {self.unit}"
