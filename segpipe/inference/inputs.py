"""What to predict: one file, a folder, or a manifest, as cases. Nothing is decoded."""

import re
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from segpipe.core.given import Given
from segpipe.core.regular import special
from segpipe.core.system_names import is_case_name, real_path, require_name
from segpipe.dataset.entries import Entries, absence_of, dangles, entries_of, without_segmentations
from segpipe.dataset.layouts import channels_within, image_paths
from segpipe.dataset.names import Channels, Digits, cases_to_predict, numbered
from segpipe.dataset.portable import file_name_here
from segpipe.dataset.tables import CaseTable, Row, read_table
from segpipe.errors import DatasetError, SegpipeError
from segpipe.io.formats import (
    IMAGE_ENDINGS,
    dicom_volumes,
    ending_of,
    holds_dicom,
    is_dicom,
    is_picture,
    output_ending,
    stem_of,
)

_NO_NAME = re.compile(r"[^\w-]+")


@dataclass(frozen=True)
class InputCase:
    """Images of one case and where its segmentation goes."""

    id: str
    images: tuple[Path, ...]
    output: Path
    problem: str | None = None
    """Why this case cannot be predicted, when that is known before anything is read."""


def _silent(_: str) -> None:
    """Say nothing."""


def find_inputs(
    source: Path,
    output: Path,
    n_channels: int,
    *,
    digits: Digits = "channel",
    note: Callable[[str], None] = _silent,
) -> list[InputCase]:
    """List the cases of an input. What cannot be read is a case with a problem.

    Parameters
    ----------
    source : Path
        An image file; a folder of image files, or of folders of DICOM files (channels by the suffix _0000, _0001, ...); a folder with
        the DICOM files of one series; or a manifest (.csv, .json).
    output : Path
        A folder; or a file, when ``source`` is one image.
    n_channels : int
        Channels of the model. With one, digits at the end of a name belong to the case, unless _0000 is the only number of that name.
    digits : "channel" or "case"
        What such digits were in the names of the training images.
    note : callable
        Receives each line about what was given and is not used.

    Raises
    ------
    DatasetError
        If nothing is found.
    SegpipeError
        If an output would overwrite an input.
    """
    require_name(real_path(source))
    if not source.exists():
        raise DatasetError(absence_of(source) if dangles(source) else f"{source}: no such file or folder")
    if why := special(source):
        raise DatasetError(why)
    if is_dicom(output):
        raise SegpipeError(f"{output}: DICOM is not written; give a folder, or a name that ends in .nii.gz")
    if source.is_dir():
        cases = _cases_in(source, output, n_channels, digits, note)
    elif source.suffix.lower() in (".csv", ".tsv", ".json"):
        cases = _manifest_cases(source, output)
    else:
        name = _lone_id(source, n_channels, digits)
        place = output if ending_of(output) else output / f"{name}{output_ending(source)}"
        cases = [InputCase(name, (source,), place, _lone_channel(source, n_channels))]
    if not cases:
        raise DatasetError(f"{source}: no image file and no DICOM found; endings read: {', '.join(IMAGE_ENDINGS)}")
    images = {real_path(image) for case in cases for image in case.images}
    for case in cases:
        if real_path(case.output) in images:
            raise SegpipeError(
                f"{case.output}: the segmentation would overwrite an image; choose another output folder"
            )
    return cases


def _cases_in(
    source: Path, output: Path, n_channels: int, digits: Digits, note: Callable[[str], None]
) -> list[InputCase]:
    cases = []
    entries, volumes = without_segmentations(entries_of(source, output=output)), dicom_volumes(source)
    if holds_dicom(source, below=False) and (not volumes or {*entries.images, *volumes} == {*volumes[:1]}):
        # The files of a series lie in it: the folder is the image, and what is below belongs to it.
        place = output if ending_of(output) else output / f"{source.name}{output_ending(source)}"
        cases = [InputCase(source.name, (source,), place)]
        files = [f for f in entries.images if f.is_file() and not is_picture(f) and not is_dicom(f)]
        entries = Entries(files, Given(kind="", n_given=0))
    else:
        entries = entries.with_images(volumes)
    for line in entries.given.lines():
        note(line)
    found, taken_whole = cases_to_predict(entries.images, n_channels, digits, channels_within)
    for name in taken_whole:
        note(
            f"{name}_0000, ...: several numbers follow this name and the model takes one channel, so each file is a case; if the numbers "
            "are channels, give only the model's"
        )
    cases += [_folder_case(c, channels, output) for c, channels in sorted(found.items())]
    known = {case.id for case in cases}
    lost = {name: why for name, why in entries.lost if name not in known}
    return cases + [InputCase(name, (), output / f"{name}.nii.gz", why) for name, why in sorted(lost.items())]


def _lone_id(source: Path, n_channels: int, digits: Digits) -> str:
    """Return the id of a file alone: that which it has where its folder is given."""
    found = numbered(stem_of(source))
    # DICOM files without an ending are numbered, and no number is a channel.
    if found is None or n_channels != 1 or ending_of(source) is None:
        return stem_of(source)
    family = [p for p in source.parent.iterdir() if ending_of(p) and (n := numbered(stem_of(p))) and n[0] == found[0]]
    cases, _ = cases_to_predict(family, n_channels, digits, channels_within)
    return next(case for case, channels in cases.items() for files in channels.values() if source in files)


def _lone_channel(source: Path, n_channels: int) -> str | None:
    """Return why a file alone is not its case: the model takes several channels, and others of this name lie beside it."""
    found = numbered(stem_of(source))
    if found is None or n_channels == 1 or channels_within(source) != 1:
        return None
    beside = [
        p for p in entries_of(source.parent).images if (n := numbered(stem_of(p))) is not None and n[0] == found[0]
    ]
    if len(beside) < 2:
        return None
    return (
        f"{source.name} is one channel of {n_channels}; {', '.join(p.name for p in beside if p != source)} beside it: give the folder "
        f"{source.parent}, or a manifest"
    )


def _folder_case(case: str, channels: Channels, output: Path) -> InputCase:
    files = [file for _, found in sorted(channels.items()) for file in found]
    twice = next((found for found in channels.values() if len(found) > 1), None)
    problem = next((why for file in files if (why := absence_of(file))), None)
    if twice:
        problem = f"several files for one image: {', '.join(f.name for f in twice)}; keep one of them"
    elif problem is None and sorted(channels) != list(range(len(channels))):
        numbers = ", ".join(f"_{c:04d}" for c in sorted(channels))
        problem = f"channels found: {numbers}; expected them from _0000 without a gap"
    return _named(InputCase(case, tuple(files), output / f"{case}{output_ending(files[0])}", problem))


def _named(case: InputCase) -> InputCase:
    """Return a case whose id can be the name of its output; where it cannot, that is its problem and no other case's."""
    if is_case_name(case.id):
        return case
    readable, digest = _NO_NAME.sub("_", case.id)[:40], sha256(case.id.encode(errors="replace")).hexdigest()[:8]
    why = "its name is too long for a file's, or holds a line break, a tab or a separator; give it another name, or an id in a manifest"
    return InputCase(case.id, case.images, case.output.parent / f"{readable}_{digest}.nii.gz", why)


def _manifest_cases(path: Path, output: Path) -> list[InputCase]:
    table = read_table(path)
    if not table.n_channels:
        raise DatasetError(
            f"{path}: no column of images; its columns are {', '.join(table.columns) or 'none'}; expected case, image[, image_2...]"
        )
    named: dict[str, list[Row]] = defaultdict(list)
    for row in table.rows:
        named[_id_of(table, row)].append(row)
    return [_manifest_case(table, case, rows, output) for case, rows in named.items()]


def _id_of(table: CaseTable, row: Row) -> str:
    images, _ = image_paths(table, row)
    return row.cells.get("case") or (stem_of(images[0]) if images else f"row {row.number}")


def _manifest_case(table: CaseTable, case: str, rows: list[Row], output: Path) -> InputCase:
    """Return the case of one id. Several rows of it, or an id that is no file's name, are its problem and no other case's."""
    unnamed = "" if rows[0].cells.get("case") else " (the name of the image's file: no column 'case' names another)"
    other = file_name_here(case)
    if len(rows) > 1 or other is not None:
        numbers = ", ".join(str(row.number) for row in rows)
        wrong = "stands twice" if len(rows) > 1 else "cannot be a file name"
        refused = f"row {numbers} of {table.path.name}: case {case!r}{unnamed} {wrong}; give each case its own id"
        return InputCase(case, (), output / f"{other or case}.nii.gz", refused)
    images, problem = image_paths(table, rows[0])
    absent = next((why for image in images if (why := absence_of(image))), None)
    ending = output_ending(images[0]) if images else ".nii.gz"
    return _named(InputCase(case, tuple(images), output / f"{case}{ending}", problem[1] if problem else absent))
