"""Spellings of one patient's name: what a spreadsheet or a hand makes of it. Pure."""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping


def one_spelling(names: Collection[str]) -> tuple[dict[str, str], list[str]]:
    """Return the name by which each patient is known, and what is to be said of it, as lines.

    Names that differ by capitals and blanks only, or as "3" and "3.0" do, are of one patient. Names that differ by leading zeros, "_" or
    "-" besides may be: they stay apart, with a warning.

    Parameters
    ----------
    names : collection of str
        Names of patients as they were given; each may be given several times.
    """
    same = _together(set(names), _plain)
    known = {name: spellings[0] for spellings in same for name in spellings}
    lines = [f"patients {_quoted(s)} are one patient: the spelling differs only" for s in same if len(s) > 1]
    alike = _together(set(known.values()), lambda name: re.sub(r"(?<!\d)0+(?=\d)|[_\-]+", "", _plain(name)))
    lines += [
        f"warning: patients {_quoted(s)} look alike and are taken for different ones; if they are one, spell them alike"
        for s in alike
        if len(s) > 1
    ]
    return known, lines


def with_one_spelling(
    columns: Mapping[str, dict[str, str]],
) -> tuple[dict[str, dict[str, str]], list[str]]:
    """Return what a table says of each case, with one name for each patient, and lines about the names that were changed."""
    known, lines = one_spelling([said["patient"] for said in columns.values() if said.get("patient")])
    spelled = {
        case: said | {"patient": known[said["patient"]]} if said.get("patient") else said
        for case, said in columns.items()
    }
    return spelled, lines


def _plain(name: str) -> str:
    text = "".join(unicodedata.normalize("NFKC", name).casefold().split())
    return re.sub(r"^(\d+)\.0+$", r"\1", text)


def _together(names: Collection[str], plain: Callable[[str], str]) -> list[list[str]]:
    found: dict[str, list[str]] = defaultdict(list)
    for name in sorted(names):
        found[plain(name)].append(name)
    return list(found.values())


def _quoted(names: Collection[str]) -> str:
    return ", ".join(repr(name) for name in names)
