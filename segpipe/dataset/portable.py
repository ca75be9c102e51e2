"""Ids of cases that another system does not take as names of files: Windows, and disks that ignore capitals or forms of letters."""

import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, NamedTuple

from segpipe.core.writable import Confused, confused_names
from segpipe.dataset.schema import Dataset, Finding

RULE = "name on other systems"
# https://learn.microsoft.com/windows/win32/fileio/naming-a-file
_DEVICE = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|com[0-9¹²³]|lpt[0-9¹²³])\s*(\..*)?", re.IGNORECASE | re.DOTALL)
_FORBIDDEN = re.compile(r'[<>:"/\\|?*\x00-\x1f]')


class NameProblem(NamedTuple):
    """Why a name is none on another system."""

    refused_by: Literal["Windows", Confused]
    """Windows, or a disk that confuses names."""
    why: str


def portable_name_problems(names: Iterable[str]) -> dict[str, NameProblem]:
    """Return the names that are no names of files on Windows, or the same as another one on Windows or macOS.

    Parameters
    ----------
    names : iterable of str
        Names of one folder's files, all different.
    """
    alike: dict[str, list[str]] = defaultdict(list)
    for name in names:
        alike[_composed(_composed(name).casefold())].append(name)
    found = {}
    for together in alike.values():
        for name in together:
            other = next((other for other in together if other != name), None)
            problem = _own_problem(name) or (None if other is None else _shared_problem(name, other))
            if problem is not None:
                found[name] = problem
    return found


def name_findings(dataset: Dataset, workspace: Path) -> list[Finding]:
    """Return a finding for each id that another system refuses: an error where this system does, else a warning.

    Parameters
    ----------
    dataset : Dataset
    workspace : Path
        Folder of the workspace; its disk is asked whether it confuses names, if there are such.
    """
    problems = portable_name_problems(case.id for case in dataset.cases)
    if not problems:
        return []
    here = {*confused_names(workspace), *(("Windows",) if os.name == "nt" else ())}
    return [
        Finding(
            case=case,
            severity="error" if problem.refused_by in here else "warning",
            rule=RULE,
            message=f"{case!r} {problem.why}; rename the case",
        )
        for case, problem in problems.items()
    ]


def without_refused(dataset: Dataset, workspace: Path) -> Dataset:
    """Return a dataset without the cases whose ids this system refuses; each is a finding."""
    errors = tuple(f for f in name_findings(dataset, workspace) if f.severity == "error")
    refused = {f.case for f in errors}
    return dataset.model_copy(
        update={
            "cases": tuple(c for c in dataset.cases if c.id not in refused),
            "findings": (*dataset.findings, *errors),
        }
    )


def file_name_here(name: str) -> str | None:
    """Return a similar name that this system takes where it refuses a name as that of a file; None where it takes the name."""
    if os.name == "nt" and _own_problem(name) is not None:
        return _FORBIDDEN.sub("_", name).rstrip(". ") + "_"
    return name.replace("/", "_").replace("\0", "_") if {"/", "\0"} & set(name) else None


def _composed(name: str) -> str:
    """Return a name with each accented letter as one character, however it was typed."""
    return unicodedata.normalize("NFC", name)


def _own_problem(name: str) -> NameProblem | None:
    """Return why Windows refuses a name, whatever lies beside it."""
    character = _FORBIDDEN.search(name)
    if character is not None:
        return NameProblem("Windows", f"holds {character[0]!r}, which Windows does not take in a name")
    if _DEVICE.fullmatch(name):
        return NameProblem("Windows", "is the name of a device on Windows")
    if name.endswith((".", " ")):
        return NameProblem("Windows", f"ends in {name[-1]!r}, which Windows drops")
    return None


def _shared_problem(name: str, other: str) -> NameProblem:
    if _composed(name) == _composed(other):
        return NameProblem("form", f"and {other!r} differ in the form of their letters alone, which macOS ignores")
    return NameProblem("case", f"and {other!r} differ in capitals alone, which Windows and macOS ignore")
