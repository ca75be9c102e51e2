"""One count for whatever a user gives: how much of it is used, and what is passed over, with the reason.

Rows of a manifest or a table, entries of a folder, links, label values, predictions: each is used or named.
"""

from collections import defaultdict
from collections.abc import Iterable

from segpipe.core.artefact import Record

_SHOWN = 3


class PassedOver(Record):
    """Something that was given and is not used."""

    what: str
    """Its name: a file, a row, a value."""
    why: str
    """The reason, the same words for all of one kind: "format .mgz is not read"."""
    a_case: bool = False
    """Whether a case is lost by it: then the command exits with 3, and `check` with 1."""


class Given(Record):
    """How many items of one kind were given, and which of them are not used."""

    kind: str
    """What they are, in the plural: "files of images/", "rows of cases.csv"."""
    n_given: int
    passed_over: tuple[PassedOver, ...] = ()

    @property
    def loses_a_case(self) -> bool:
        """Whether something that was passed over is, or may be, a case."""
        return any(p.a_case for p in self.passed_over)

    def lines(self) -> list[str]:
        """Return the count and a line for each reason; nothing when everything is used."""
        if not self.passed_over:
            return []
        by_reason: dict[str, list[str]] = defaultdict(list)
        for item in self.passed_over:
            by_reason[item.why].append(item.what)
        n_left = len(self.passed_over)
        first = f"{self.kind}: {self.n_given} given, {self.n_given - n_left} used, {n_left} passed over"
        return [first, *(f"  {why}: {_some(names)}" for why, names in by_reason.items())]


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:_SHOWN]) + (f", and {len(listed) - _SHOWN} more" if len(listed) > _SHOWN else "")
