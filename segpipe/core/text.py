"""Numbers and tables as a reader sees them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

_NEAR = 0.6
"""Share of letters in common from which on a word may have been meant (difflib's own)."""


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


def rounded(value: float, digits: int = 3) -> str:
    """Return a number with so many digits that count; large ones whole and with commas, never as a power of ten."""
    return f"{value:,.0f}" if abs(value) >= 10 ** (digits - 1) else f"{value:.{digits}g}"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return "; did you mean 'x'?" with the known word that is nearest to a wrong one; empty where none is near.

    Parameters
    ----------
    word : str
        What was given.
    known : iterable of str
    """
    by_lower = {name.lower(): name for name in known}
    near = get_close_matches(word.lower(), by_lower, n=1, cutoff=_NEAR)
    return f"; did you mean {by_lower[near[0]]!r}?" if near else ""
