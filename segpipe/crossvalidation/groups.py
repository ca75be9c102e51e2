"""Which cases belong together: by a column of the manifest, or by a pattern in their ids."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection

from segpipe.dataset.patients import shared_beginning
from segpipe.dataset.schema import Case, Dataset
from segpipe.errors import CrossvalError

BY_CASE = "case"
_PATIENT = "patient"
_MOST_SHOWN = 6


def groups_of(dataset: Dataset, usable: Collection[str], by: str | None) -> tuple[str, dict[str, str]]:
    """Group of each usable case, and by what.

    Parameters
    ----------
    dataset : Dataset
    usable : collection of str
        Ids of the cases to be divided.
    by : str, optional
        A column, or a regular expression that finds the group in a case's id (its first bracket, or all that it matches). Unless given,
        the column ``patient`` where there is one.

    Raises
    ------
    CrossvalError
        If a case has no value, or the pattern does not match its id.
    """
    cases = [case for case in dataset.cases if case.id in usable]
    if by is None:
        with_patient = [case for case in cases if case.group]
        if not with_patient:
            return BY_CASE, {case.id: case.id for case in cases}
        by = _PATIENT
    columns = column_names(dataset)
    if by == BY_CASE:
        groups = {case.id: case.id for case in cases}
    elif by in columns:
        groups = _by_column(dataset, usable, by)
    else:
        groups = {case.id: _by_pattern(case.id, by, columns) for case in cases}
    _require_whole_patients(cases, groups, by)
    return by, groups


def _require_whole_patients(cases: list[Case], groups: dict[str, str], by: str) -> None:
    """Raise where the manifest knows patients, and these groups would part one."""
    seen: dict[str, str] = {}
    for case in cases:
        if case.group is not None and seen.setdefault(case.group, groups[case.id]) != groups[case.id]:
            raise CrossvalError(
                f"--group-by {by}: patient {case.group!r} has cases in the groups {seen[case.group]!r} and {groups[case.id]!r}, and "
                "would be trained and tested on; group by patient, or by something that keeps patients whole"
            )


def _by_column(dataset: Dataset, usable: Collection[str], by: str) -> dict[str, str]:
    values = column(dataset, usable, by)
    without = [case for case, value in values.items() if not value]
    if without:
        raise CrossvalError(
            f"--group-by {by}: {len(without)} case(s) have no value in that column, such as {without[0]!r}; fill it in for every case"
        )
    return values


def is_pattern(dataset: Dataset, by: str | None) -> bool:
    """Whether groups are guessed from ids, and not read from a column."""
    return by is not None and by != BY_CASE and by not in column_names(dataset)


def column_names(dataset: Dataset) -> tuple[str, ...]:
    """Columns of the manifest."""
    return tuple(sorted({name for case in dataset.cases for name in case.columns}))


def column(dataset: Dataset, usable: Collection[str], name: str) -> dict[str, str]:
    """Value of a column for each usable case, empty where there is none.

    Raises
    ------
    CrossvalError
        If there is no such column.
    """
    if name not in column_names(dataset):
        raise CrossvalError(f"column {name!r}: {_columns_found(column_names(dataset))}")
    return {case.id: case.columns.get(name, "") for case in dataset.cases if case.id in usable}


def _columns_found(columns: tuple[str, ...]) -> str:
    return f"the manifest has {', '.join(columns)}" if columns else "there is no manifest (cases.csv) with columns"


def _by_pattern(case: str, pattern: str, columns: tuple[str, ...]) -> str:
    try:
        found = re.search(pattern, case)
    except re.error as error:
        raise CrossvalError(f"--group-by {pattern}: not a regular expression ({error})") from error
    group = found[1] if found and found.re.groups else found[0] if found else ""
    if not group:
        raise CrossvalError(
            f"--group-by {pattern}: does not match the case {case!r}; expected a column ({_columns_found(columns)}), or a regular "
            "expression that finds the patient in every case id"
        )
    return group


def describe_groups(groups: dict[str, str]) -> list[tuple[str, str]]:
    """Groups with their cases, the largest first, to be looked at before they are believed; the rest counted in a last row."""
    members: dict[str, list[str]] = {}
    for case, group in sorted(groups.items()):
        members.setdefault(group, []).append(case)
    ranked = sorted(members.items(), key=lambda m: (-len(m[1]), m[0]))
    rows = [(group, ", ".join(cases)) for group, cases in ranked[:_MOST_SHOWN]]
    rest = ranked[_MOST_SHOWN:]
    if rest:
        sizes = Counter(len(cases) for _, cases in rest)
        told = ", ".join(f"{n} of {size} case(s)" for size, n in sorted(sizes.items(), reverse=True))
        rows.append((f"{len(rest)} more", told))
    return rows


def looks_grouped(cases: Collection[str]) -> str | None:
    """A hint where ids that were taken for patients look like several scans of fewer patients; None where they do not."""
    found = shared_beginning(cases)
    if found is None:
        return None
    stem, n = found
    return (
        f"{n} case ids begin with {stem!r}: if these are scans of one patient, give --group-by with a column or a pattern, such as "
        "'^(.+)_', or scores flatter"
    )
