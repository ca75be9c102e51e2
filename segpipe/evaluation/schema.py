"""The evaluation artefact: scores a case and a label, and summaries that drop nothing silently."""

from typing import Literal

from segpipe.core.artefact import Artefact, Record, added_later
from segpipe.core.given import Given
from segpipe.metrics.surface import SurfaceUnit

Status = Literal["scored", "missed", "spurious", "not_applicable"]


class LabelScore(Record):
    """One label of one case.

    ``missed``: only the reference holds it; ``spurious``: only the prediction does; both score Dice 0, NSD 0 and the
    image's diagonal as HD95. ``not_applicable``: neither holds it; there is nothing to score.
    """

    status: Status
    dice: float | None
    nsd: float | None
    hd95_mm: float | None
    volume_prediction_ml: float
    volume_reference_ml: float


class CaseScores(Record):
    """All labels of one case."""

    case: str
    labels: dict[str, LabelScore]


class LabelSummary(Record):
    """One label over all cases. Means run over the cases where it applies, misses and false alarms included."""

    n_cases: int
    n_applicable: int
    n_missed: int
    n_spurious: int
    n_not_applicable: int
    mean_dice: float | None
    mean_nsd: float | None
    mean_hd95_mm: float | None


class Evaluation(Artefact):
    """Scores of a set of predictions."""

    scored_as_of: str = added_later("")
    """The version that last changed what a score is, of those that the scoring one knew; "" of 0.1.0.dev6 and older."""
    tolerance_mm: float
    nsd_unit: SurfaceUnit = added_later("voxels")
    """What the normalised surface Dice counts: voxels of a surface, or its area."""
    labels: dict[str, tuple[int, ...]]
    """Names of labels or regions, and the stored values that each covers."""
    ignore: int | None = None
    """Reference value of voxels that were not scored."""
    cases: tuple[CaseScores, ...]
    by_label: dict[str, LabelSummary]
    mean_dice: float | None
    """Mean over labels of their mean Dice; labels that apply to no case are named in ``without_cases``."""
    mean_nsd: float | None
    mean_hd95_mm: float | None
    n_missed: int
    without_cases: tuple[str, ...] = ()
    failed: dict[str, str] = {}
    """Cases that could not be scored, with the reasons; a reference without a prediction is one."""
    given: tuple[Given, ...] = added_later(())
    """What was given and is not used: files without a partner, values that no label has."""
