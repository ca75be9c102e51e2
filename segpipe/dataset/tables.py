"""Read a table of cases: cases.csv as spreadsheets save it, or cases.json. Cells are text."""

import codecs
import csv
import io
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from segpipe.core.regular import read_bytes
from segpipe.errors import DatasetError

_DELIMITERS = (",", ";", "\t", "|")
_BYTE_ORDER_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_NUMBERED = re.compile(r"^(image|label)(\d*)$")
_CASE = ("case", "caseid")
_PATIENT = re.compile(
    r"(id)?((patient|subject|participant|person|proband)(en|in|s)?|pacientes?)"
    r"(id|ids|no|nr|num|number|nummer|name|key|code|identifier)?|pid|mrn"
)
"""Names of a column of patients, in small letters and digits alone."""
_NOTHING = frozenset(("nan", "n/a", "null"))
"""What tools write into an empty cell."""
_NO_VALUE = _NOTHING | {"na", "none", "<na>", "-", "--", "#n/a", "#nv", "#ref!", "#value!", "#name?"}
"""What people and spreadsheets write into a cell for nothing; a case may have such a name."""


class Row(NamedTuple):
    """Cells of one row by column; an empty cell is an empty text."""

    number: int
    """Its place in the file, the row below the header being 1."""
    cells: dict[str, str]


class CaseTable(NamedTuple):
    """Rows of a table. Its columns are named case, image_1, image_2, ..., label, label_2, ..., patient, however they were spelled."""

    path: Path
    columns: tuple[str, ...]
    rows: tuple[Row, ...]

    @property
    def n_channels(self) -> int:
        """Columns of images."""
        return sum(c.startswith("image_") for c in self.columns)


def read_table(path: Path) -> CaseTable:
    """Read a cases.csv or cases.json.

    A .csv is separated by commas, semicolons, tabs or bars, in UTF-8 or with a byte order mark; empty rows are left out.

    Raises
    ------
    DatasetError
        If the file is neither, cannot be decoded, two columns have one meaning, or a row has a cell in a column without a name.
    """
    ending = path.suffix.lower()
    if ending in (".csv", ".tsv"):
        columns, rows = _rows_of_csv(path)
    elif ending == ".json":
        columns, rows = _rows_of_json(path)
    else:
        raise DatasetError(f"{path}: a table of cases ends in .csv, .tsv or .json")
    names = _names(path, columns)
    _require_whole_numbering(path, list(names.values()))
    found = []
    for number, row in rows:
        cells = {names[c]: _cell(names[c], v) for c, v in row.items() if c in names}
        if any(cells.values()):
            found.append(Row(number, cells))
    by = _patient_column(path, list(names.values()), found)
    if by is None:
        return CaseTable(path, tuple(names.values()), tuple(found))
    with_patient = tuple(Row(row.number, row.cells | {"patient": row.cells[by]}) for row in found)
    return CaseTable(path, tuple(dict.fromkeys((*names.values(), "patient"))), with_patient)


def means_patient(column: str) -> bool:
    """Tell whether a column's name is one of those of a column of patients: "Patient (ID)", "subject_key", "MRN"."""
    return _PATIENT.fullmatch(re.sub(r"[^a-z0-9]+", "", column.lower())) is not None


def read_json(path: Path) -> Any:
    """Read JSON in UTF-8, or in any Unicode encoding with a byte order mark; an empty file is None.

    Raises
    ------
    DatasetError
        If it is not JSON.
    """
    content = read_bytes(path)
    if not content.strip():
        return None
    try:
        return json.loads(_decoded(path, content), object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{path}: is not JSON ({error}); repair it or take it away") from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object; a name that stands in it with two values is a ValueError, since either may be meant."""
    found: dict[str, Any] = {}
    for name, value in pairs:
        if found.setdefault(name, value) != value:
            raise ValueError(f"{name!r} stands twice in one object, with {found[name]!r} and {value!r}")
    return found


def _decoded(path: Path, content: bytes) -> str:
    encoding = next((e for mark, e in _BYTE_ORDER_MARKS.items() if content.startswith(mark)), "utf-8")
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path}: is not UTF-8 ({error}); save it as UTF-8") from error


def _rows_of_csv(path: Path) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    text = _decoded(path, read_bytes(path))
    # Excel's own first line.
    stated = re.match(r"sep=(.)\r?\n?", text)
    text = text[stated.end() :] if stated else text
    lines = [line for line in text.splitlines() if line.strip(" \t,;|")]
    if not lines:
        return [], []
    delimiter = stated[1] if stated else _delimiter_of(lines[0])
    try:
        # Text with universal line ends: a cell may hold some.
        found = list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True))
    except csv.Error as error:
        raise DatasetError(f"{path}: is no table ({error}); save it as CSV again") from error
    table = [[cell.strip() for cell in cells] for cells in found]
    first = next(number for number, cells in enumerate(table) if any(cells))
    header = table[first]
    rows = []
    for number, cells in enumerate(table[first + 1 :], start=1):
        if any(cells[len(header) :]):
            raise DatasetError(
                f"{path}: row {number} has {len(cells)} cells, the header {len(header)} ({', '.join(header)}); put quotes around a "
                f"cell that holds {delimiter!r}"
            )
        unnamed = next((n for n, name in enumerate(header) if n and not name and any(cells[n : n + 1])), None)
        if unnamed is not None:
            raise DatasetError(
                f"{path}: row {number} has {cells[unnamed]!r} in column {unnamed + 1}, which has no name; name the column, or put quotes "
                f"around a cell that holds {delimiter!r}"
            )
        rows.append((number, dict(zip(header, [*cells, *[""] * (len(header) - len(cells))], strict=False))))
    _require_once(path, [name for name in header if name])
    return [name for name in header if name], rows


def _delimiter_of(header: str) -> str:
    """Return the delimiter that splits a header into the most names, those that are known counting first."""

    def worth(delimiter: str) -> tuple[int, int]:
        names = [_squashed(name) for name in next(csv.reader([header], delimiter=delimiter, skipinitialspace=True))]
        known = sum(name in _CASE or means_patient(name) or bool(_NUMBERED.match(name)) for name in names)
        return known, len(names)

    return max(_DELIMITERS, key=worth)


def _rows_of_json(path: Path) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    content = read_json(path)
    rows = content.get("cases", []) if isinstance(content, dict) else content or []
    if not isinstance(rows, list) or not all(isinstance(r, dict) for r in rows):
        raise DatasetError(
            f"{path}: expected a list of objects with case, image and label (or that list under 'cases')"
        )
    columns = list(dict.fromkeys(str(name) for row in rows for name in row))
    texts = [{str(k): "" if v is None else str(v).strip() for k, v in row.items()} for row in rows]
    return columns, [(n, {c: row.get(c, "") for c in columns}) for n, row in enumerate(texts, start=1)]


def _squashed(name: str) -> str:
    """Return a column's name without case, blanks, '_' and '-'."""
    return re.sub(r"[\s_\-]+", "", name.strip().strip('"').lower())


def _names(path: Path, columns: list[str]) -> dict[str, str]:
    """Return the name by which each column is known: that of segpipe, where it is one, else its own."""
    names = {column: _name_of(column) for column in columns}
    _require_once(path, list(names.values()), names)
    return names


def _name_of(column: str) -> str:
    squashed = _squashed(column)
    if squashed in _CASE:
        return "case"
    if squashed == "patient":
        return "patient"
    numbered = _NUMBERED.match(squashed)
    if numbered is None:
        return column
    number = int(numbered[2] or 1)
    return "label" if numbered[1] == "label" and number == 1 else f"{numbered[1]}_{number}"


def _cell(column: str, text: str) -> str:
    """Return what a cell says; an empty text where it says that there is nothing."""
    return "" if text.lower() in (_NOTHING if column == "case" else _NO_VALUE) else text


def _patient_column(path: Path, columns: list[str], rows: list[Row]) -> str | None:
    """Return the column that names patients: the fullest, and of equally full ones ``patient``, else the first."""
    filled = {c: [row.cells.get(c, "") for row in rows] for c in columns if means_patient(c)}
    if not filled:
        return None
    chosen = max(filled, key=lambda c: (sum(map(bool, filled[c])), c == "patient"))
    for other, names in filled.items():
        pairs = {(a, b) for a, b in zip(filled[chosen], names, strict=True) if a and b}
        if not len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs}):
            raise DatasetError(
                f"{path}: the columns {other} and {chosen} both name patients and keep different cases together; keep one of them, or "
                "rename the other"
            )
    return chosen


def _require_once(path: Path, names: list[str], spelled: dict[str, str] | None = None) -> None:
    twice = next((name for name, n in Counter(names).items() if n > 1), None)
    if twice is not None:
        which = [s for s, name in (spelled or {}).items() if name == twice] or [twice, twice]
        raise DatasetError(f"{path}: the columns {', '.join(which)} have one meaning; keep one of them")


def _require_whole_numbering(path: Path, names: list[str]) -> None:
    numbers = sorted(int(name.removeprefix("image_")) for name in names if re.match(r"image_\d+$", name))
    if numbers and numbers != list(range(1, len(numbers) + 1)):
        found = ", ".join(f"image_{n}" for n in numbers)
        raise DatasetError(
            f"{path}: the columns of images are {found}; expected image_1 (or image), image_2, ... without a gap"
        )
