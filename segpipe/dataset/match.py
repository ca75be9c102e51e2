"""Match a folder's files to cases: four layouts, one result. Nothing is decoded."""

import csv
import json
import re
from collections import Counter, defaultdict
from contextlib import suppress
from math import prod
from pathlib import Path
from typing import Any

from segpipe.core.labels import Labels
from segpipe.core.workspace import Workspace
from segpipe.dataset.declared import channel_names, read_labels_declaration
from segpipe.dataset.schema import Case, Dataset, FileStamp, Finding, Layout
from segpipe.errors import DatasetError, UnreadableFileError
from segpipe.io.formats import IMAGE_ENDINGS, ending_of, is_image, read_header, stem_of

_CHANNEL_SUFFIX = re.compile(r"^(?P<case>.+)_(?P<channel>\d{4})$")
_ONLY_CHANNEL_SUFFIX = re.compile(r"^(?P<case>.+)_(?P<channel>0000)$")
_SAFE_ID = re.compile(r"^[^/\\\0]+$")
_IMAGE_COLUMN = re.compile(r"^image(_\d+)?$")
_LABEL_COLUMN = re.compile(r"^label(_\d+)?$")
_LAYOUTS_HELP = (
    "expected imagesTr/ + labelsTr/ (nnU-Net), a dataset.json with a 'training' list (Medical Segmentation Decathlon), "
    "images/ + labels/, or a cases.csv / cases.json with the columns case, image, label"
)


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
        If no layout is recognised, no case is found, or dataset.json is wrong.
    """
    root = root.resolve()
    if not root.exists():
        raise DatasetError(f"{root}: no such folder or file; {_LAYOUTS_HELP}")
    folder = root if root.is_dir() else root.parent
    declared = _read_json(folder / "dataset.json") if (folder / "dataset.json").is_file() else {}
    layout, rows = _rows(root, folder, declared)
    cases, findings = _cases(rows, _table(folder, layout))
    if not cases and not findings:
        raise DatasetError(
            f"{root}: recognised as {layout}, but no image file was found; endings read: {', '.join(IMAGE_ENDINGS)}"
        )
    return Dataset(
        name=str(declared.get("name") or (root.name if root.is_dir() else folder.name)),
        root=root,
        layout=layout,
        channel_names=channel_names(declared) or _channels_found(cases),
        labels=read_labels_declaration(declared),
        resample_channels=resample_channels,
        cases=tuple(cases),
        findings=tuple(findings),
    )


def match_again(root: Path, workspace: Workspace, resample_channels: bool | None) -> Dataset:
    """Match a dataset for its workspace: how channels are read is as the last time where it is not given."""
    if resample_channels is None:
        resample_channels = workspace.dataset.is_file() and Dataset.read(workspace.dataset).resample_channels
    return match_dataset(root, resample_channels=resample_channels)


class _Row(dict[str, Any]):
    """One case as its layout names it: case, images, label, columns."""


def _rows(root: Path, folder: Path, declared: dict[str, Any]) -> tuple[Layout, list[_Row]]:
    if root.is_file():
        return "manifest", _manifest_rows(root)
    if isinstance(declared.get("dataset"), dict):
        return "nnunet", _listed_rows(folder, declared["dataset"])
    training = declared.get("training")
    if isinstance(training, list) and training and not _is_nnunet_v1(folder, training):
        return "decathlon", [_decathlon_row(folder, entry) for entry in training]
    if (folder / "imagesTr").is_dir():
        return "nnunet", _folder_rows(folder / "imagesTr", folder / "labelsTr")
    manifest = next((m for m in (folder / "cases.csv", folder / "cases.json") if m.is_file() and _has_images(m)), None)
    if manifest:
        return "manifest", _manifest_rows(manifest)
    for images, labels in (("images", "labels"), ("image", "label")):
        if (folder / images).is_dir() and (folder / labels).is_dir():
            return "pairs", _folder_rows(folder / images, folder / labels)
    found = ", ".join(sorted(p.name + "/" * p.is_dir() for p in folder.iterdir())[:8]) or "nothing"
    raise DatasetError(f"{root}: layout not recognised: found {found}; {_LAYOUTS_HELP}")


def _is_nnunet_v1(folder: Path, training: list[Any]) -> bool:
    """nnU-Net v1 lists 'training' like the Decathlon, but its image files carry a channel suffix."""
    listed = folder / str(training[0].get("image", "")) if isinstance(training[0], dict) else folder
    return not listed.is_file() and (folder / "imagesTr" / f"{stem_of(listed)}_0000{ending_of(listed) or ''}").is_file()


def _decathlon_row(folder: Path, entry: Any) -> _Row:
    if not isinstance(entry, dict) or "image" not in entry:
        raise DatasetError(
            f"{folder / 'dataset.json'}: an entry of 'training' is {entry!r}; expected an object with image and label"
        )
    image, label = folder / str(entry["image"]), entry.get("label")
    return _Row(case=stem_of(image), images=[image], label=folder / str(label) if label else None)


def _listed_rows(folder: Path, listed: dict[str, Any]) -> list[_Row]:
    rows = []
    for case, entry in sorted(listed.items()):
        if not isinstance(entry, dict) or not isinstance(entry.get("images"), list):
            raise DatasetError(
                f"{folder / 'dataset.json'}: case {case!r} is {entry!r}; expected an object with images and label"
            )
        label = entry.get("label")
        rows.append(
            _Row(case=case, images=[folder / i for i in entry["images"]], label=folder / label if label else None)
        )
    return rows


def _folder_rows(images: Path, labels: Path) -> list[_Row]:
    """Match images and labels by name; a suffix _0000, _0001, ... numbers an image's channels."""
    image_files, label_files = image_files_in(images), image_files_in(labels) if labels.is_dir() else []
    # A label with an image's whole name says that its digits belong to the case, not to a channel.
    same_names = {stem_of(i) for i in image_files} & {stem_of(f) for f in label_files}
    by_case = _by_case(image_files, None if same_names else _CHANNEL_SUFFIX)
    labels_by_case: dict[str, list[Path]] = defaultdict(list)
    for file in label_files:
        labels_by_case[stem_of(file)].append(file)
    rows = []
    for case in sorted({*by_case, *labels_by_case}):
        channels = by_case.get(case, {})
        twice = [files for files in [*channels.values(), labels_by_case.get(case, [])] if len(files) > 1]
        row = _Row(case=case, images=[files[0] for _, files in sorted(channels.items())])
        row["label"] = labels_by_case[case][0] if case in labels_by_case else None
        if twice:
            row["duplicates"] = [f.name for f in twice[0]]
        elif sorted(channels) != list(range(len(channels))):
            row["gap"] = sorted(channels)
        rows.append(row)
    return rows


def group_images(files: list[Path], n_channels: int) -> dict[str, dict[int, list[Path]]]:
    """Group image files to cases and channels by name; more than one file of a channel is the caller's to refuse.

    Digits such as ``_0001`` at the end of a name number the channels; for one channel only ``_0000`` does.
    """
    return _by_case(files, _CHANNEL_SUFFIX if n_channels > 1 else _ONLY_CHANNEL_SUFFIX)


def _by_case(files: list[Path], suffix: re.Pattern[str] | None) -> dict[str, dict[int, list[Path]]]:
    by_case: dict[str, dict[int, list[Path]]] = defaultdict(lambda: defaultdict(list))
    for file in files:
        matched = suffix.match(stem_of(file)) if suffix else None
        case, channel = (matched["case"], int(matched["channel"])) if matched else (stem_of(file), 0)
        by_case[case][channel].append(file)
    return by_case


def image_files_in(folder: Path) -> list[Path]:
    """Image files and folders of DICOM files directly in a folder, sorted; hidden ones are passed over."""
    return sorted(p for p in folder.iterdir() if not p.name.startswith(".") and is_image(p))


def _has_images(manifest: Path) -> bool:
    rows = read_manifest(manifest)
    return bool(rows) and any(_IMAGE_COLUMN.match(key) for key in rows[0])


def read_manifest(path: Path) -> list[dict[str, str]]:
    """Read the rows of a cases.csv or cases.json; values are text.

    Raises
    ------
    DatasetError
        If the file is neither, or its rows are not objects.
    """
    if path.suffix.lower() == ".csv":
        try:
            with path.open(newline="", encoding="utf-8-sig") as file:
                return [{k.strip(): (v or "").strip() for k, v in row.items() if k} for row in csv.DictReader(file)]
        except UnicodeDecodeError as error:
            raise DatasetError(f"{path}: is not UTF-8 ({error}); save it as UTF-8") from error
    if path.suffix.lower() != ".json":
        raise DatasetError(f"{path}: a manifest ends in .csv or .json")
    try:
        content = json.loads(path.read_text(encoding="utf-8") or "[]")
    except ValueError as error:
        raise DatasetError(f"{path}: is not JSON ({error}); repair it") from error
    rows = content.get("cases", []) if isinstance(content, dict) else content
    if not isinstance(rows, list) or not all(isinstance(r, dict) for r in rows):
        raise DatasetError(
            f"{path}: expected a list of objects with case, image and label (or that list under 'cases')"
        )
    return [{str(k): "" if v is None else str(v) for k, v in row.items()} for row in rows]


def manifest_images(row: dict[str, str], folder: Path) -> list[Path]:
    """Image paths of a manifest row, in channel order; relative ones start at the manifest's folder."""
    columns = sorted((c for c in row if _IMAGE_COLUMN.match(c) and row[c]), key=lambda c: int(c.partition("_")[2] or 1))
    return [folder / row[c] for c in columns]


def _manifest_rows(path: Path) -> list[_Row]:
    rows = []
    for number, row in enumerate(read_manifest(path), start=1):
        images = manifest_images(row, path.parent)
        if not images:
            raise DatasetError(
                f"{path}: row {number} has no image; its columns are {', '.join(row)}; expected case, image[, image_2...], label"
            )
        label = path.parent / row["label"] if row.get("label") else None
        made = _Row(case=row.get("case") or stem_of(images[0]), images=images, label=label)
        made["columns"] = _other_columns(row)
        made["raters"] = [row[c] for c in sorted(row) if _LABEL_COLUMN.match(c) and row[c]]
        rows.append(made)
    return rows


def _other_columns(row: dict[str, str]) -> dict[str, str]:
    """What a row says of its case besides its id and its files."""
    files = (_IMAGE_COLUMN, _LABEL_COLUMN)
    return {c: v for c, v in row.items() if v and c != "case" and not any(f.match(c) for f in files)}


def _table(folder: Path, layout: Layout) -> dict[str, dict[str, str]]:
    """What a cases.csv that lies beside another layout says of each case: its patient, its site."""
    table = folder / "cases.csv"
    if layout == "manifest" or not table.is_file():
        return {}
    return {row["case"]: _other_columns(row) for row in read_manifest(table) if row.get("case")}


def _cases(rows: list[_Row], table: dict[str, dict[str, str]]) -> tuple[list[Case], list[Finding]]:
    """Whole cases, and a finding for each row that is none."""
    cases: dict[str, Case] = {}
    findings: list[Finding] = []
    counts: dict[str, int] = defaultdict(int)
    for row in rows:
        counts[row["case"]] += 1
    for row in rows:
        problem = _row_problem(row, counts[row["case"]])
        if problem:
            findings.append(Finding(case=row["case"], severity="error", rule=problem[0], message=problem[1]))
            continue
        columns = row.get("columns") or table.get(row["case"], {})
        cases[row["case"]] = Case(
            id=row["case"],
            images=tuple(FileStamp.of(i) for i in row["images"]),
            label=FileStamp.of(row["label"]),
            group=columns.get("patient"),
            columns=columns,
        )
    return [cases[c] for c in sorted(cases)], findings


def _row_problem(row: _Row, n_rows: int) -> tuple[str, str] | None:
    if not _SAFE_ID.match(row["case"]) or row["case"] in (".", ".."):
        return "case id", f"{row['case']!r} cannot be a file name; use letters, digits, '_', '-' and '.'"
    if n_rows > 1:
        return "duplicate id", f"{n_rows} rows have this id; give each case its own"
    if row.get("duplicates"):
        return "duplicate id", f"several files for one image: {', '.join(row['duplicates'])}; keep one of them"
    if row.get("gap"):
        return (
            "missing channel",
            f"channels found: {', '.join(f'_{c:04d}' for c in row['gap'])}; expected them from _0000 without a gap",
        )
    if len(row.get("raters", ())) > 1:
        return (
            "several raters",
            f"{len(row['raters'])} label files ({', '.join(row['raters'])}); join them first (a majority vote, or STAPLE), or give "
            "each rater's a case of its own with the same patient",
        )
    if not row["images"]:
        return "missing pair", f"label {Path(row['label']).name} has no image of the same name"
    if not row["label"]:
        return "missing pair", f"image {Path(row['images'][0]).name} has no label of the same name"
    absent = next((p for p in [*row["images"], row["label"]] if not Path(p).exists()), None)
    return ("missing file", f"{absent}: no such file") if absent else None


def _channels_found(cases: list[Case]) -> tuple[str, ...]:
    """Names for channels that nobody declared, as many as most cases have."""
    counts: Counter[int] = Counter()
    for case in cases:
        with suppress(UnreadableFileError):
            counts[sum(_n_channels(image.path) for image in case.images)] += 1
    # Where as many cases have fewer, those are the ones that lack a channel.
    n = max(counts, key=lambda n: (counts[n], n), default=1)
    return tuple(f"channel_{i}" for i in range(n))


def _n_channels(path: Path) -> int:
    # A DICOM series is one channel; its headers need not be read to know.
    return 1 if path.is_dir() else read_header(path).n_channels


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
    if not path.is_file():
        raise DatasetError(f"{path}: no such file; give the dataset.json that declares the labels")
    labels = read_labels_declaration(_read_json(path), any_order=True)
    if labels is None:
        raise DatasetError(f'{path}: declares no "labels"')
    return labels


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DatasetError(f"{path}: is not JSON ({error}); repair it or take it away") from error
    if not isinstance(content, dict):
        raise DatasetError(
            f"{path}: holds a {type(content).__name__}; expected an object with labels and channel_names"
        )
    return content
