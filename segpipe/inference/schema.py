"""What prediction leaves behind: one line a case in predictions.jsonl, and the same as a table."""

from typing import Literal

from segpipe.core.artefact import Record, RecordedPath, added_later
from segpipe.dataset.schema import FileStamp


class Quality(Record):
    """What was measured on a segmentation that nobody has looked at yet."""

    spacing_mm: tuple[float, ...] = ()
    """Spacing of the image, (z, y, x) in the plan's orientation."""
    mean_entropy: float | None = None
    """Mean entropy of the foreground's voxels, between 0 (certain) and 1."""
    disagreement: float | None = None
    """Share of the foreground that a fold or a mirror image, on average, labels in another way than their mean."""
    components: dict[str, int] = {}
    """Connected components of each label or region."""
    touches_border: tuple[str, ...] = ()
    """Labels that reach the edge of the image: perhaps cut off."""
    intensity_drift: float | None = None
    """How far intensities lie beyond the training cases', 1 being the most that is taken for the same kind; None where it is not known."""
    spacing_outside: tuple[str, ...] = ()
    """Axes (z, y, x) whose spacing lies beyond the training cases'."""
    volume_outside: tuple[str, ...] = ()
    """Labels whose volume lies beyond the training cases'."""


class PredictionRow(Record):
    """What became of one case."""

    case: str
    status: Literal["done", "failed"]
    output: RecordedPath
    reason: str | None = None
    images: tuple[FileStamp, ...] = ()
    content: str = ""
    """sha256 of the images' files."""
    output_sha256: str = ""
    saved: tuple[RecordedPath, ...] = ()
    """Further files: probabilities, uncertainty."""
    saved_sha256: dict[str, str] = added_later({})
    """sha256 of the further files, by their names."""
    model: str
    """Digest of the model and of how it was applied."""
    software: str = ""
    engine: str = ""
    elapsed_s: float = 0.0
    """From reading to writing; cases overlap, so that a batch takes less than their sum."""
    seconds: dict[str, float] = {}
    """By stage."""
    peak_memory_gb: float | None = None
    """Most memory that the process held while the case was computed."""
    n_windows: int = 0
    volumes_ml: dict[str, float] = {}
    """Per label name."""
    quality: Quality = Quality()
    doubts: tuple[str, ...] = ()
    """Reasons to look at this case: its image or its volumes may not be of the kind the model was trained on."""
