"""The comparison artefact."""

from typing import Literal

from segpipe.core.artefact import Artefact, Record

Metric = Literal["dice", "nsd", "hd95_mm"]
METRICS: tuple[Metric, ...] = ("dice", "nsd", "hd95_mm")
ALL_LABELS = "mean of labels"


class Latency(Record):
    """Prediction of the cases on one device, after a first one that does not count."""

    device: str
    engine: str
    seconds_per_case: float
    """Whole cases, files read and written."""
    peak_memory_gb: float | None
    """Peak memory of the whole process, on the host; None where the system does not say."""
    peak_device_gb: float | None = None
    """Peak memory of tensors on a GPU."""


class ModelCosts(Record):
    """What one model takes."""

    name: str
    path: str
    digest: str
    """sha256 of plan and weights."""
    folds: tuple[str, ...]
    parameters: int
    """Weights of one fold."""
    macs_per_case: int
    """Multiply-adds of all windows, folds and mirror images of a case, on average."""
    file_mb: float
    """The model file with these folds alone."""
    latency: tuple[Latency, ...]


class ModelScores(Record):
    """Means over cases, by label and over all labels; None where no case has the label."""

    by_label: dict[str, dict[Metric, float | None]]
    n_missed: int
    failed: dict[str, str] = {}
    """Cases without a score, with the reasons."""


class Difference(Record):
    """A metric of two models on the same patients."""

    first: str
    second: str
    label: str
    metric: Metric
    n_patients: int
    mean: float | None
    """Second minus first, mean over patients."""
    low: float | None
    high: float | None
    """95 % interval of that mean by bootstrap over patients."""
    p: float | None
    """Wilcoxon's signed rank test, two-sided; None with fewer than five patients that differ."""


class Retention(Record):
    """How much of the first model's mean a model keeps."""

    model: str
    dice_percent: float | None
    low: float | None
    high: float | None
    """95 % interval by bootstrap over patients."""
    nsd_percent: float | None
    parameters_percent: float
    macs_percent: float | None
    lowest_label: str | None
    lowest_label_percent: float | None


class Comparison(Artefact):
    """Models on the same cases; the others are compared with the first."""

    dataset: str
    cases: tuple[str, ...]
    tta: bool
    tolerance_mm: float
    threads: int
    models: tuple[ModelCosts, ...]
    scores: dict[str, ModelScores]
    retention: tuple[Retention, ...]
    differences: tuple[Difference, ...]
