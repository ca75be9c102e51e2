"""What a command shows of its result, for a terminal or as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from segpipe.core.text import Table, shown

if TYPE_CHECKING:
    from segpipe.evaluation.schema import Evaluation

FAILED_CASES = 3
"""Exit code of a batch that finished with failed cases."""


@dataclass(frozen=True)
class Page:
    """A result, in plain values and in lines and tables."""

    json: Any
    parts: Sequence[str | Table]
    failed: Mapping[str, str] = field(default_factory=dict)
    """What was lost, with the reasons: shown last, and the command exits with 3."""
    lost: str = "Cases that were lost"
    """Title of the table of what failed."""
    exit_code: int = 0
    """Exit code where nothing failed."""
    refused: str = ""
    """Why there is nothing to show but the JSON."""


def places(paths: Mapping[str, Any]) -> list[str]:
    """Return lines that say where everything is."""
    return [f"{name:12} {path}" for name, path in paths.items()]


def texts(paths: Mapping[str, Any]) -> dict[str, str]:
    """Return paths as JSON knows them."""
    return {name: str(path) for name, path in paths.items()}


def plain(record: Any) -> Any:
    """Return an artefact, if there is one, as plain values."""
    return None if record is None else record.model_dump(mode="json")


def facts_page(facts: dict[str, str]) -> Page:
    """Return a page of facts, a line each."""
    return Page(facts, ["\n".join(f"{name:<14}{value}" for name, value in facts.items())])


def failures(title: str, failed: Mapping[str, str]) -> list[Table]:
    """Return a table of what was lost, with the reasons; none where nothing was."""
    rows = [[case, reason] for case, reason in sorted(failed.items())]
    return [Table(title, ["case", "reason"], rows)] if rows else []


def scores(evaluation: Evaluation) -> list[str | Table]:
    """Return the scores per label, and what was not scored."""
    rows = [
        [
            name, shown(s.mean_dice), shown(s.mean_nsd), shown(s.mean_hd95_mm, 2),
            *map(str, (s.n_applicable, s.n_missed, s.n_spurious, s.n_not_applicable)),
        ]
        for name, s in evaluation.by_label.items()
    ]  # fmt: skip
    means = [shown(evaluation.mean_dice), shown(evaluation.mean_nsd), shown(evaluation.mean_hd95_mm, 2)]
    rows.append(["mean of labels", *means, "", str(evaluation.n_missed), "", ""])
    nsd = f"NSD {evaluation.tolerance_mm:g} mm{' (area)' if evaluation.nsd_unit == 'area' else ''}"
    columns = ["label", "Dice", nsd, "HD95 mm", "cases", "missed", "false alarms", "n/a"]
    made = Table(f"Scores of {len(evaluation.cases)} case(s)", columns, rows, range(1, 8))
    without = ", ".join(evaluation.without_cases)
    absent = [f"in no case, so not in the mean: {without}"] if without else []
    return [made, *absent, *(line for given in evaluation.given for line in given.lines())]
