"""Match the files of a dataset to cases: four layouts, one result. Nothing is decoded."""

from collections import Counter
from contextlib import suppress
from math import prod
from pathlib import Path
from typing import Any

from segpipe.core.labels import Labels
from segpipe.core.regular import lies, special
from segpipe.core.system_names import is_case_name, real_path, require_name
from segpipe.core.whole import said_by_system
from segpipe.core.workspace import Workspace
from segpipe.dataset.declared import channel_names, read_labels_declaration
from segpipe.dataset.entries import absence_of
from segpipe.dataset.layouts import LAYOUTS_HELP, TABLES, CaseRow, Matched, channels_within, rows_of, table_in
from segpipe.dataset.patients import Joined, join_table, require_all_patients, without_patients
from segpipe.dataset.portable import without_refused
from segpipe.dataset.schema import Case, Dataset, FileStamp, Finding
from segpipe.dataset.spelling import with_one_spelling
from segpipe.dataset.tables import read_json, read_table
from segpipe.errors import DatasetError, UnreadableFileError
from segpipe.io.formats import IMAGE_ENDINGS, ending_of, read_header

_OTHER_TABLES = (".csv", ".tsv", ".xls", ".xlsx", ".ods")


def match_dataset(root: Path, *, resample_channels: bool = False) -> Dataset:
    """Recognise the layout of a dataset and match its files.

    Parameters
    ----------
    root : Path
        A folder, or a manifest file (.csv, .json).
    resample_channels : bool
        Recorded: how a case's channels will be read.

    Raises
    ------
    DatasetError
        If no layout is recognised, no case is found, dataset.json is wrong, or a table of patients does not fit the cases.
    """
    if why := special(root):
        raise DatasetError(why)
    root = real_path(root)
    require_name(root)
    if not root.exists():
        raise DatasetError(f"{root}: no such folder or file; {LAYOUTS_HELP}")
    folder = root if root.is_dir() else root.parent
    declared = _read_object(folder / "dataset.json") if lies(folder / "dataset.json") else {}
    names = channel_names(declared)
    matched = rows_of(root, folder, declared, len(names))
    cases, findings = _cases(matched.rows)
    if not cases and not findings:
        raise DatasetError(
            f"{root}: recognised as {matched.layout}, but no image file was found; endings read: {', '.join(IMAGE_ENDINGS)}"
        )
    joined = _joined(folder, matched, cases)
    columns, spellings = with_one_spelling({case.id: case.columns or joined.columns.get(case.id, {}) for case in cases})
    cases = [_with_columns(case, columns[case.id]) for case in cases]
    if matched.table is not None:
        require_all_patients(str(matched.table.path), {case.id: case.columns for case in cases})
    return Dataset(
        name=str(declared.get("name") or (root.name if root.is_dir() else folder.name)),
        root=root,
        layout=matched.layout,
        channel_names=names or _channels_found(cases),
        labels=read_labels_declaration(declared),
        resample_channels=resample_channels,
        cases=tuple(cases),
        findings=tuple(findings),
        patients_from=joined.name if any(case.group for case in cases) else "",
        given=tuple(g for g in (*matched.given, joined.given) if g.passed_over),
        notes=(*joined.notes, *spellings, *_declared_notes(declared, matched.rows)),
    )


def match_again(root: Path, workspace: Workspace, resample_channels: bool | None) -> Dataset:
    """Match a dataset for its workspace: how channels are read is as the last time where it is not given.

    A case whose id the workspace's system refuses is left out, with a finding.
    """
    if resample_channels is None:
        resample_channels = lies(workspace.dataset) and Dataset.read(workspace.dataset).resample_channels
    return without_refused(match_dataset(root, resample_channels=resample_channels), workspace.root)


def _joined(folder: Path, matched: Matched, cases: list[Case]) -> Joined:
    """What a table that lies beside another layout says of each case: its patient, its site."""
    if matched.table is not None:
        notes = (*_unused_tables(folder, matched.table.path), *without_patients(matched.table, holds_images=True))
        return Joined(matched.table.path.name, notes=notes)
    path = next((found for name in TABLES if (found := table_in(folder, name))), None)
    if path is None:
        others = sorted(p.name for p in folder.iterdir() if p.suffix.lower() in _OTHER_TABLES and p.is_file())
        note = f"{', '.join(others)}: not read; a table that names patients is called {TABLES[0]}"
        return Joined(notes=(note,) if others else ())
    joined = join_table(read_table(path), {row.case for row in matched.rows}, {case.id for case in cases})
    return joined._replace(notes=(*joined.notes, *_unused_tables(folder, path)))


def _unused_tables(folder: Path, used: Path) -> list[str]:
    """Name tables of cases that lie beside the one that is used."""
    others = sorted(p.name for p in folder.iterdir() if p.name.lower() in TABLES and p.name != used.name)
    return [f"warning: {', '.join(others)}: not used, since {used.name} is"] if others else []


def _with_columns(case: Case, columns: dict[str, str]) -> Case:
    return case.model_copy(update={"group": columns.get("patient"), "columns": columns}) if columns else case


def _declared_notes(declared: dict[str, Any], rows: list[CaseRow]) -> list[str]:
    """Notes where dataset.json counts other cases, or states another ending, than there are."""
    notes = []
    stated, n_cases = declared.get("numTraining"), len({row.case for row in rows if row.images})
    if isinstance(stated, int) and stated != n_cases:
        notes.append(f"dataset.json states numTraining {stated}, and images of {n_cases} case(s) are here")
    ending, endings = declared.get("file_ending"), {ending_of(image) for row in rows for image in row.images} - {None}
    if isinstance(ending, str) and endings and ending.lower() not in endings:
        notes.append(
            f"dataset.json states file_ending {ending!r}, and the images end in {', '.join(sorted(map(str, endings)))}"
        )
    return notes


def _cases(rows: list[CaseRow]) -> tuple[list[Case], list[Finding]]:
    """Whole cases, and a finding for each row that is none."""
    cases: dict[str, Case] = {}
    findings: list[Finding] = []
    counts = Counter(row.case for row in rows)
    for row in rows:
        try:
            problem = _row_problem(row, counts[row.case])
            if problem is None:
                cases[row.case] = _case(row)
        except OSError as error:
            # It went meanwhile, or its folder is closed.
            advice = "ask for the right to read it, or copy it again"
            problem = "unreadable", f"{said_by_system(error)}; {advice}"
        if problem:
            findings.append(Finding(case=row.case, severity="error", rule=problem[0], message=problem[1]))
    return [cases[c] for c in sorted(cases)], findings


def _case(row: CaseRow) -> Case:
    return Case(
        id=row.case,
        images=tuple(FileStamp.of(image) for image in row.images),
        label=None if row.label is None else FileStamp.of(row.label),
        columns=row.columns,
    )


def _row_problem(row: CaseRow, n_rows: int) -> tuple[str, str] | None:
    if not row.images and row.label is None and row.lost:
        return "not read", row.lost
    if not is_case_name(row.case):
        return "case id", f"{row.case!r} cannot be a file name; use letters, digits, '_', '-' and '.'"
    if n_rows > 1 and row.from_file:
        named = f"{n_rows} rows have this id, the name of their image's file, since none is given"
        return "duplicate id", f"{named}; add a column 'case' with an id for each row"
    if n_rows > 1:
        return "duplicate id", f"{n_rows} rows have this id; give each case its own"
    if row.problem:
        return row.problem
    paths: list[Path] = [*row.images, *([] if row.label is None else [row.label])]
    absent = next((why for path in paths if (why := absence_of(path))), None)
    if absent is not None:
        return "missing file", absent
    no_file = next((why for path in paths if (why := special(path))), None)
    if no_file is not None:
        return "unreadable", no_file
    also = f"; {row.lost}" if row.lost else ""
    if not row.images:
        return (
            "missing pair",
            f"label {'' if row.label is None else row.label.name} has no image of the same name{also}",
        )
    if row.label is None:
        return "missing pair", f"image {row.images[0].name} has no label of the same name{also}"
    return None


def _channels_found(cases: list[Case]) -> tuple[str, ...]:
    """Names for channels that nobody declared, as many as most cases have."""
    counts: Counter[int] = Counter()
    for case in cases:
        held = [channels_within(image.path) for image in case.images]
        counts.update([sum(held)] if all(held) else [])
    # Where as many cases have fewer, those are the ones that lack a channel.
    n = max(counts, key=lambda n: (counts[n], n), default=1)
    return tuple(f"channel_{i}" for i in range(n))


# Peak memory of reading and measuring a case, in float32 copies of its image (measured; docs/experiments.md).
_READING_COPIES = 4
# float32 bytes of a DICOM series by the bytes of its files: 16-bit voxels, compressed to 40 % where they are.
_DICOM_EXPANSION = 5


def reading_bytes(dataset: Dataset) -> int:
    """Forecast of the memory that reading and measuring the largest case takes, from headers and file sizes."""
    largest = 0
    for case in dataset.cases:
        with suppress(UnreadableFileError):
            largest = max(largest, sum(_float32_bytes(image) for image in case.images))
    return largest * _READING_COPIES


def _float32_bytes(image: FileStamp) -> int:
    if image.path.is_dir():
        return _DICOM_EXPANSION * image.size_bytes
    header = read_header(image.path)
    return 4 * header.n_channels * prod(header.grid.shape)


def read_labels_file(path: Path) -> Labels:
    """Read the labels that a dataset.json declares, to score masks by them: the order in which regions are painted does not matter.

    Raises
    ------
    DatasetError
        If it is not such a file, or declares none.
    """
    if not lies(path):
        raise DatasetError(f"{path}: no such file; give the dataset.json that declares the labels")
    labels = read_labels_declaration(_read_object(path), any_order=True)
    if labels is None:
        raise DatasetError(f'{path}: declares no "labels"')
    return labels


def _read_object(path: Path) -> dict[str, Any]:
    content = read_json(path)
    if not isinstance(content, dict):
        raise DatasetError(
            f"{path}: holds a {type(content).__name__}; expected an object with labels and channel_names"
        )
    return content
