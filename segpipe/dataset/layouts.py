"""What each layout of a dataset says of its cases: rows with files, and the count of what lies there. Nothing is decoded."""

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from segpipe.core.given import Given, PassedOver
from segpipe.core.regular import lies
from segpipe.dataset.entries import Entries, absence_of, dangles, entries_of, without_segmentations
from segpipe.dataset.names import Channels, cases_with_labels, numbered
from segpipe.dataset.patients import other_columns
from segpipe.dataset.schema import Layout
from segpipe.dataset.tables import CaseTable, Row, read_table
from segpipe.dataset.unlisted import unlisted
from segpipe.errors import DatasetError, UnreadableFileError
from segpipe.io.formats import IMAGE_ENDINGS, ending_of, read_header, stem_of

LAYOUTS_HELP = (
    "expected imagesTr/ + labelsTr/ (nnU-Net), a dataset.json with a 'training' list (Medical Segmentation Decathlon), "
    "images/ + labels/, or a cases.csv / cases.json with the columns case, image, label"
)
TABLES = ("cases.csv", "cases.tsv", "cases.json")
"""Names of a table of cases, in any case of letters."""
_SEGMENTATION = re.compile(r"(seg|segmentation|mask|msk|labels?|gt|truth)$", re.IGNORECASE)


@dataclass
class CaseRow:
    """One case as its layout names it."""

    case: str
    images: list[Path]
    label: Path | None
    columns: dict[str, str] = field(default_factory=dict)
    problem: tuple[str, str] | None = None
    """Rule and message, where the row itself is wrong."""
    lost: str = ""
    """What lies there in the place of a missing file, and why it is not read."""
    from_file: bool = False
    """Whether the id is the name of the image's file."""


@dataclass(frozen=True)
class Matched:
    """Rows of a layout."""

    layout: Layout
    rows: list[CaseRow]
    given: tuple[Given, ...] = ()
    table: CaseTable | None = None
    """The manifest, where it is one."""


def rows_of(root: Path, folder: Path, declared: Mapping[str, Any], n_channels: int) -> Matched:
    """Recognise the layout of a dataset and list its cases.

    Parameters
    ----------
    root : Path
        Folder or manifest.
    folder : Path
        The folder, or that of the manifest.
    declared : mapping
        Content of dataset.json.
    n_channels : int
        Declared channels; 0 if none are.

    Raises
    ------
    DatasetError
        If no layout is recognised, or a declaration is wrong.
    """
    if root.is_file():
        return _manifest(read_table(root))
    if isinstance(declared.get("dataset"), dict):
        rows = _listed_rows(folder, declared["dataset"])
        return Matched("nnunet", rows, _left_out(folder, rows, "dataset.json does not list it under 'dataset'"))
    training = declared.get("training")
    if isinstance(training, list) and training and not _is_nnunet_v1(folder, training):
        rows = [_decathlon_row(folder, entry) for entry in training]
        why = "dataset.json does not list it under 'training'"
        return Matched("decathlon", rows, _left_out(folder, rows, why))
    if (folder / "imagesTr").is_dir():
        return _folders("nnunet", folder / "imagesTr", folder / "labelsTr", n_channels)
    for table in (table_in(folder, name) for name in TABLES):
        if table is not None and (found := read_table(table)).n_channels:
            return _manifest(found)
    for images, labels in (("images", "labels"), ("image", "label")):
        if (folder / images).is_dir() and (folder / labels).is_dir():
            return _folders("pairs", folder / images, folder / labels, n_channels)
    raise DatasetError(
        f"{root}: layout not recognised: found {_listing(folder)}; {_per_patient(folder) or LAYOUTS_HELP}"
    )


def table_in(folder: Path, name: str) -> Path | None:
    """Return a table of a folder by its name, in capitals or not; None if there is none.

    Raises
    ------
    DatasetError
        If it is a link that leads nowhere.
    UnreadableFileError
        If it is no file.
    """
    exact = folder / name
    if lies(exact):
        return exact
    found = [p for p in sorted(folder.iterdir()) if p.name.lower() == name and (lies(p) or dangles(p))]
    broken = next((why for path in found if (why := absence_of(path))), None)
    if broken is not None:
        raise DatasetError(f"{folder}: {broken}, or take the link away")
    return found[0] if found else None


def channels_within(path: Path) -> int:
    """Return the channels of one image; 0 if its header cannot be read."""
    if path.is_dir():
        # A DICOM series is one channel; its headers need not be read to know.
        return 1
    try:
        return read_header(path).n_channels
    except (UnreadableFileError, OSError):
        return 0


def image_paths(table: CaseTable, row: Row) -> tuple[list[Path], tuple[str, str] | None]:
    """Return the images of a manifest's row in the order of their channels, and what is wrong with its cells: rule and message.

    Relative paths begin at the manifest's folder. An empty cell before a filled one is a missing channel.
    """
    columns = [f"image_{n}" for n in range(1, table.n_channels + 1)]
    texts = [row.cells.get(c, "") for c in columns]
    images = [path_of_cell(table.path.parent, text) for text in texts if text]
    if not images:
        return [], ("missing pair", f"row {row.number} of {table.path.name} names no image; fill in {columns[0]}")
    last = max(n for n, text in enumerate(texts) if text)
    empty = [c for c, text in zip(columns[:last], texts[:last], strict=True) if not text]
    if empty:
        return images, (
            "missing channel",
            f"row {row.number} of {table.path.name}: {', '.join(empty)} is empty and {columns[last]} is not; each column is one channel: "
            "fill it in, or leave the case out",
        )
    return images, None


def path_of_cell(folder: Path, text: str) -> Path:
    r"""Return the path that a cell names; ``\`` stands for ``/`` where only that leads to a file."""
    path = folder / text
    if "\\" in text and not path.exists():
        turned = folder / text.replace("\\", "/")
        if turned.exists() or not dangles(path):
            return turned
    return path


def _manifest(table: CaseTable) -> Matched:
    if not table.n_channels:
        raise DatasetError(
            f"{table.path}: no column of images; its columns are {', '.join(table.columns) or 'none'}; expected case, image, label"
        )
    if "label" not in table.columns:
        raise DatasetError(
            f"{table.path}: no column 'label'; its columns are {', '.join(table.columns)}; name the column of segmentations 'label'"
        )
    rows = [_manifest_row(table, row) for row in table.rows]
    unnamed = tuple(
        PassedOver(what=f"row {r.number}", why="it names neither a case nor a file") for r in table.rows if not _says(r)
    )
    listed = [row for row in rows if row is not None]
    left = _left_out(table.path.parent, listed, f"{table.path.name} does not list it")
    return Matched("manifest", listed, (*_given_rows(table, unnamed), *left), table)


def _left_out(folder: Path, rows: list[CaseRow], why: str) -> tuple[Given, ...]:
    """Count what lies beside the images that rows list."""
    images = [image for row in rows for image in row.images]
    return unlisted(folder, images, [row.label for row in rows if row.label is not None], why)


def _says(row: Row) -> bool:
    return any(v for c, v in row.cells.items() if c in ("case", "label") or c.startswith(("image_", "label_")))


def _given_rows(table: CaseTable, passed_over: tuple[PassedOver, ...]) -> tuple[Given, ...]:
    return (Given(kind=f"rows of {table.path.name}", n_given=len(table.rows), passed_over=passed_over),)


def _manifest_row(table: CaseTable, row: Row) -> CaseRow | None:
    if not _says(row):
        return None
    cells, folder = row.cells, table.path.parent
    images, problem = image_paths(table, row)
    raters = [cells[c] for c in table.columns if (c == "label" or c.startswith("label_")) and cells.get(c)]
    if len(raters) > 1:
        problem = problem or (
            "several raters",
            f"{len(raters)} label files ({', '.join(raters)}); join them first (a majority vote, or STAPLE), or give each rater's a case "
            "of its own with the same patient",
        )
    case = cells.get("case") or (stem_of(images[0]) if images else f"row {row.number}")
    label = path_of_cell(folder, raters[0]) if raters else None
    return CaseRow(case, images, label, other_columns(cells), problem, from_file=not cells.get("case"))


def _is_nnunet_v1(folder: Path, training: list[Any]) -> bool:
    """nnU-Net v1 lists 'training' like the Decathlon, but its image files carry a channel suffix."""
    listed = folder / str(training[0].get("image", "")) if isinstance(training[0], dict) else folder
    return not listed.is_file() and (folder / "imagesTr" / f"{stem_of(listed)}_0000{ending_of(listed) or ''}").is_file()


def _decathlon_row(folder: Path, entry: Any) -> CaseRow:
    if not isinstance(entry, dict) or "image" not in entry:
        raise DatasetError(
            f"{folder / 'dataset.json'}: an entry of 'training' is {entry!r}; expected an object with image and label"
        )
    image, label = path_of_cell(folder, str(entry["image"])), entry.get("label")
    return CaseRow(stem_of(image), [image], path_of_cell(folder, str(label)) if label else None, from_file=True)


def _listed_rows(folder: Path, listed: dict[str, Any]) -> list[CaseRow]:
    rows = []
    for case, entry in sorted(listed.items()):
        if not isinstance(entry, dict) or not isinstance(entry.get("images"), list):
            raise DatasetError(
                f"{folder / 'dataset.json'}: case {case!r} is {entry!r}; expected an object with images and label"
            )
        label = entry.get("label")
        images = [path_of_cell(folder, str(i)) for i in entry["images"]]
        rows.append(CaseRow(case, images, path_of_cell(folder, str(label)) if label else None))
    return rows


def _folders(layout: Layout, images: Path, labels: Path, n_channels: int) -> Matched:
    """Match images and labels by name."""
    if dangles(labels):
        raise DatasetError(f"{labels.parent}: {absence_of(labels)}")
    image_entries = without_segmentations(entries_of(images))
    label_entries = (
        entries_of(labels) if labels.is_dir() else Entries([], Given(kind=f"entries of {labels.name}/", n_given=0))
    )
    by_label: dict[str, list[Path]] = defaultdict(list)
    for file in label_entries.images:
        by_label[stem_of(file)].append(file)
    by_case = cases_with_labels(image_entries.images, by_label, n_channels, channels_within)
    known = {*by_case, *by_label}
    lost = {_case_of(name, known): why for entries in (image_entries, label_entries) for name, why in entries.lost}
    rows = [
        _folder_row(case, by_case.get(case, {}), by_label.get(case, []), lost.get(case, ""))
        for case in sorted({*known, *lost})
    ]
    _name_misnamed_labels(rows, by_label)
    return Matched(layout, rows, (image_entries.given, label_entries.given))


def _case_of(name: str, known: set[str]) -> str:
    """Return the case that a file belongs to whose format is not read."""
    found = numbered(name)
    return found[0] if name not in known and found is not None and found[0] in known else name


def _folder_row(case: str, channels: Channels, labels: list[Path], lost: str) -> CaseRow:
    row = CaseRow(case, [files[0] for _, files in sorted(channels.items())], labels[0] if labels else None, lost=lost)
    twice = next((files for files in [*channels.values(), labels] if len(files) > 1), None)
    if twice is not None:
        names = ", ".join(f.name for f in twice)
        row.problem = ("duplicate id", f"several files for one image: {names}; keep one of them")
    elif sorted(channels) != list(range(len(channels))):
        found = ", ".join(f"_{c:04d}" for c in sorted(channels))
        row.problem = ("missing channel", f"channels found: {found}; expected them from _0000 without a gap")
    return row


def _name_misnamed_labels(rows: list[CaseRow], labels: Mapping[str, list[Path]]) -> None:
    """Say of a case without a label that there is one, named like its first channel."""
    for row in rows:
        like = labels.get(f"{row.case}_0000")
        if row.label is None and like and row.images and not row.lost:
            row.lost = f"{like[0].name} is named like a channel; rename it to {row.case}{ending_of(like[0])}"


def _listing(folder: Path) -> str:
    found = []
    for path in sorted(folder.iterdir())[:8]:
        also = f" (link to {path.readlink()}, which is not there)" if dangles(path) else ""
        found.append(f"{path.name}{'/' * path.is_dir()}{also}")
    return ", ".join(found) or "nothing"


def _per_patient(folder: Path) -> str | None:
    """Return how to describe folders of one patient each by a manifest; None if there are none."""
    patients = [p for p in sorted(folder.iterdir()) if p.is_dir() and not p.name.startswith(".")]
    files = {p: [f for f in sorted(p.iterdir()) if f.is_file() and ending_of(f) is not None] for p in patients}
    having = [p for p in patients if files[p]]
    if not having:
        return None
    first = having[0]
    label = next((f for f in files[first] if _SEGMENTATION.search(stem_of(f))), None)
    images = [f for f in files[first] if f != label]
    columns = ["case", *(f"image_{n}" for n in range(1, len(images) + 1)), "label"]
    cells = [
        first.name,
        *(f"{first.name}/{f.name}" for f in images),
        "" if label is None else f"{first.name}/{label.name}",
    ]
    return (
        f"{len(having)} folder(s) hold images, as with one folder per patient: list them in {folder / 'cases.csv'}, one row per case: "
        f"{','.join(columns)!r} and below it {','.join(cells)!r} (endings read: {', '.join(IMAGE_ENDINGS)})"
    )
