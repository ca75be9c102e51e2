"""The fingerprint artefact: what was measured on the cases, nothing chosen."""

from segpipe.core.artefact import Artefact, Record, added_later
from segpipe.core.labels import Labels
from segpipe.dataset.names import Digits
from segpipe.dataset.schema import Finding

PERCENTILES = (0.5, 5.0, 25.0, 50.0, 75.0, 95.0, 99.5)
"""Percentiles of an image's non-zero voxels, kept per case and channel."""


class CaseFingerprint(Record):
    """Measurements on one case, in canonical orientation, (z, y, x)."""

    case: str
    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    shape_after_crop: tuple[int, int, int]
    """Shape of the box around the non-zero region of any channel."""
    label_voxels: dict[int, int] = {}
    """Voxels by stored label value, background and ignored voxels left out."""
    ignored_voxels: int = 0
    """Voxels that nobody labelled."""
    moments: tuple[tuple[float, float], ...] = ()
    """Mean and mean square of the foreground's intensities, one a channel; empty without foreground."""
    percentiles: tuple[tuple[float, ...], ...] = ()
    """PERCENTILES of the non-zero voxels, one row a channel."""


class IntensityStatistics(Record):
    """Intensities of one channel over the foreground of all cases, each case weighing the same."""

    mean: float
    median: float
    std: float
    min: float
    max: float
    percentile_00_5: float
    percentile_99_5: float


class Fingerprint(Artefact):
    """What was measured on the usable cases of a dataset."""

    dataset_name: str
    dataset_digest: str
    """Digest of the declaration and of the content of every case."""
    software: str
    """Version of segpipe whose way of measuring this is; where that has changed since, it is measured again."""
    channel_names: tuple[str, ...]
    labels: Labels
    """The declared ones, or those found in the files."""
    resample_channels: bool = False
    """Channels on other grids were brought onto the first one's."""
    n_training_cases: int
    cases: tuple[CaseFingerprint, ...]
    intensities: tuple[IntensityStatistics, ...]
    """One a channel; empty when no foreground voxel was seen."""
    median_relative_size_after_cropping: float
    groups: dict[str, str] = {}
    """Patient (or the case itself) of each case id; cases with equal images are of one."""
    equal_images: tuple[tuple[str, ...], ...] = added_later(())
    """Ids of cases whose images are equal, voxel by voxel."""
    digits: Digits = added_later("channel")
    """What digits such as _0001 at the end of the images' names are."""
    findings: tuple[Finding, ...] = ()
    """What is wrong with cases; those with an error are not among ``cases``."""

    @property
    def left_out(self) -> dict[str, str]:
        """Cases that are not used, with the reasons."""
        reasons: dict[str, list[str]] = {}
        for finding in self.findings:
            if finding.severity == "error":
                reasons.setdefault(finding.case, []).append(f"{finding.rule}: {finding.message}")
        return {case: "; ".join(found) for case, found in reasons.items()}
