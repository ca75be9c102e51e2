"""Numbers and tables as a reader sees them."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Table:
    """Rows with a title; the columns numbered in ``right`` are flush right."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    right: Sequence[int] = ()


def shown(value: float | None, digits: int = 3) -> str:
    """Return a number with so many decimal places; "-" where there is none."""
    return "-" if value is None else f"{value:.{digits}f}"
