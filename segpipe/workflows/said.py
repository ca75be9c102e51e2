"""What every command that divides cases says of its dataset: how cases are kept together, what is not used, which cases are odd."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from segpipe.dataset.fingerprint.schema import Fingerprint
    from segpipe.dataset.schema import Dataset

_MOST_ODD = 5


def dataset_lines(matched: Dataset, measured: Fingerprint, *, grouping: bool = True) -> list[str]:
    """Return lines about a measured dataset: how cases are grouped, notes, what was passed over, and which cases are unlike the others."""
    from segpipe.dataset.fingerprint.across import RULES
    from segpipe.dataset.patients import describe_grouping

    odd = [f for f in measured.findings if f.rule in RULES and f.severity == "warning"]
    left = len(odd) - _MOST_ODD
    return [
        *(describe_grouping(measured.groups, matched.patients_from, measured.equal_images) if grouping else []),
        *matched.notes,
        *matched.passed_over,
        *(f"{f.case}: {f.rule}: {f.message}" for f in odd[:_MOST_ODD]),
        *([f"{left} more warning(s) about single cases; `segpipe check` lists them"] if left > 0 else []),
    ]
