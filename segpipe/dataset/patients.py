"""Which cases are of one patient: by a table, and what is said of it where cases are divided."""

import re
from collections import Counter
from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import NamedTuple

from segpipe.core.given import Given, PassedOver
from segpipe.dataset.tables import CaseTable, means_patient
from segpipe.errors import DatasetError

_FEW_STEMS = 0.75
_LIKE_PATIENT = re.compile(r"patient|subject|participant|person|proband|pacient|pazient|sujet|mrn", re.IGNORECASE)
_BEGINNINGS = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        r"(sub-[a-z0-9]+)",
        r"(.+?)[_\-.]ses",
        r"(.+)[_\-.]",
        r"(.*\d)[a-z]$",
        r"(.*\d)t\d+$",
        r"(.+?)[_\-.]",
    )
)
"""What of an id may name the patient, the plainest first: BIDS, what is before the session, the last part, a letter, a time, the first."""
_CELLS_OF_FILES = re.compile(r"^(image|label)(_\d+)?$")


class Joined(NamedTuple):
    """What a table says of each case, and which of its rows are of none."""

    name: str = ""
    """Name of the table's file; empty if there is none."""
    columns: Mapping[str, dict[str, str]] = MappingProxyType({})
    given: Given = Given(kind="rows", n_given=0)
    notes: tuple[str, ...] = ()


def other_columns(cells: Mapping[str, str]) -> dict[str, str]:
    """Return what a row says of its case besides its id and its files."""
    return {c: v for c, v in cells.items() if v and c != "case" and not _CELLS_OF_FILES.match(c)}


def join_table(table: CaseTable, cases: Collection[str], usable: Collection[str]) -> Joined:
    """Return what a table that lies beside a folder of images says of its cases.

    Parameters
    ----------
    table : CaseTable
    cases : collection of str
        Ids of all cases, broken ones among them.
    usable : collection of str
        Ids of the cases that need a row.

    Raises
    ------
    DatasetError
        If there is no column of cases, a case stands twice, no row is of a case, or patients are named for a part of the cases only.
    """
    name = table.path.name
    if "case" not in table.columns:
        raise DatasetError(
            f"{table.path}: has no column 'case'; its columns are {', '.join(table.columns) or 'none'}; expected case, patient, ..."
        )
    rows: dict[str, dict[str, str]] = {}
    nameless, strangers = [], []
    for number, cells in table.rows:
        case = cells["case"]
        if case in rows:
            raise DatasetError(
                f"{table.path}: case {case!r} stands twice, the second time in row {number}; keep one row"
            )
        if not case:
            nameless.append(PassedOver(what=f"row {number}", why="it names no case"))
            continue
        rows[case] = other_columns(cells)
        if case not in cases:
            strangers.append(PassedOver(what=case, why="no case has this id"))
    if cases and rows and len(strangers) == len(rows):
        raise DatasetError(
            f"{table.path}: none of its {len(rows)} rows is of a case of the dataset; its first is of {strangers[0].what!r}, the dataset's "
            f"first case is {min(cases)!r}{_alike(strangers, cases)}: write the ids as the cases have them, or take the table away"
        )
    without = sorted(set(usable) - set(rows))
    if without and "patient" in table.columns:
        raise DatasetError(
            f"{table.path}: {len(without)} of {len(usable)} cases have no row, such as {without[0]!r}{_alike(strangers, without)}; "
            "without their patients, scans of one patient could be trained and tested on: add their rows"
        )
    notes = [f"{name}: {len(without)} of {len(usable)} cases have no row, such as {without[0]!r}"] if without else []
    notes += without_patients(table)
    if any(c.startswith("image_") for c in table.columns):
        notes.append(
            f"{name}: its columns of files are not used, since the folders hold the cases; give the table itself to use them"
        )
    given = Given(kind=f"rows of {name}", n_given=len(table.rows), passed_over=(*nameless, *strangers))
    require_all_patients(name, {case: rows[case] for case in usable if case in rows})
    return Joined(name, {case: rows[case] for case in rows if case in cases}, given, tuple(notes))


def without_patients(table: CaseTable, *, holds_images: bool = False) -> list[str]:
    """Return what is to be known of a table that names no patient, as lines; none where it names one.

    Parameters
    ----------
    table : CaseTable
    holds_images : bool
        Whether it lists the cases themselves: then it need not name patients, and a line is due only if a column looks like theirs.
    """
    if any(row.cells.get("patient") for row in table.rows) or not table.rows:
        return []
    empty = [c for c in table.columns if means_patient(c)]
    if not empty and holds_images and not any(_LIKE_PATIENT.search(c) for c in table.columns):
        return []
    what = f"the column {empty[0]!r} is empty" if empty else "there is no column 'patient'"
    return [
        f"warning: {table.path.name}: {what}; its columns are {', '.join(table.columns)}; cases are not kept together by it"
    ]


def require_all_patients(table: str, columns: Mapping[str, Mapping[str, str]]) -> None:
    """Raise if a table names the patients of some cases and not of others.

    Raises
    ------
    DatasetError
        Naming a case without one.
    """
    without = sorted(case for case, said in columns.items() if not said.get("patient"))
    if without and len(without) < len(columns):
        raise DatasetError(
            f"{table}: {len(without)} of {len(columns)} cases have no patient, such as {without[0]!r}; fill in the column for every case "
            "(a name of its own for a patient with one case)"
        )


def _alike(rows: Collection[PassedOver], cases: Collection[str]) -> str:
    """Return two ids that differ by their spelling only, as a phrase; empty if there are none."""
    spelled = {_plain_id(case): case for case in cases}
    found = next((row.what for row in rows if _plain_id(row.what) in spelled), None)
    return "" if found is None else f" ({found!r} looks like case {spelled[_plain_id(found)]!r})"


def _plain_id(case: str) -> str:
    """Return an id without case, ending, channel digits, leading zeros and separators."""
    name = re.sub(r"\.(nii|gz|nrrd|mha|mhd|png|tiff?|dcm|mgz|img|hdr|jpe?g)\b", "", case.lower())
    name = re.sub(r"_0000$", "", name)
    return re.sub(r"\.0$|(?<!\d)0+(?=\d)|[\s_\-]+", "", name)


def describe_grouping(
    groups: Mapping[str, str], patients_from: str, equal_images: Collection[Collection[str]] = ()
) -> list[str]:
    """Return how cases are kept together when they are divided, as lines.

    Parameters
    ----------
    groups : mapping
        Group of each case; a case without a patient is a group by itself, of its own name.
    patients_from : str
        Name of the table that names patients; empty where none does.
    equal_images : collection
        Cases whose images are equal.
    """
    n_groups = len(set(groups.values()))
    if patients_from:
        lines = [f"{len(groups)} cases of {n_groups} patients by {patients_from}"]
    else:
        hint = shared_beginning(groups)
        also = (
            ""
            if hint is None
            else f"; {hint[1]} ids begin with {hint[0]}: if these are scans of one patient, scores flatter"
        )
        advice = "" if hint is None else ": name the patients in a cases.csv with the columns case and patient"
        lines = [f"{len(groups)} cases, each case by itself{also}{advice}"]
    lines += [f"{', '.join(sorted(cases))} have equal images and are kept on one side" for cases in equal_images]
    return lines


def shared_beginning(cases: Collection[str]) -> tuple[str, int] | None:
    """Return the most frequent beginning of ids and their number, where ids look like several scans of fewer patients."""
    for beginning in _BEGINNINGS:
        found = [beginning.match(case) for case in cases]
        stems = Counter(case if match is None else match[1] for match, case in zip(found, cases, strict=True))
        # Where all share one beginning it is the dataset's name; where hardly any do, it is chance.
        if 1 < len(stems) <= _FEW_STEMS * len(cases):
            return stems.most_common(1)[0]
    return None


def joined_groups(groups: Mapping[str, str], equal_images: Collection[Collection[str]]) -> dict[str, str]:
    """Return groups in which cases with equal images are together, with all that belongs to either.

    Parameters
    ----------
    groups : mapping
        Group of each case.
    equal_images : collection
        Cases whose images are equal; a case that has no group is passed over.
    """
    joined = dict(groups)
    for cases in equal_images:
        together = sorted({joined[case] for case in cases if case in joined})
        joined = {case: together[0] if group in together else group for case, group in joined.items()}
    return joined
