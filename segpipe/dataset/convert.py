"""DICOM series to NIfTI files, each with a sidecar that keeps what is needed to write results back."""

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from segpipe.core.artefact import Artefact, Record
from segpipe.errors import ArtefactError, CaseError, DatasetError
from segpipe.io.dicom import Series, find_series, read_voxels, stack_of
from segpipe.io.formats import write_volume
from segpipe.io.series import Stack


class SourceSlice(Record):
    """The DICOM image (or frame of one) that became a slice of the volume."""

    file: str
    """Relative to the folder that was converted."""
    sop_class_uid: str
    sop_instance_uid: str
    frame: int
    position_mm: tuple[float, float, float]
    """ImagePositionPatient, LPS."""


class Sidecar(Artefact):
    """Where a converted volume came from. It names the patient: treat it as the DICOM files themselves."""

    patient: dict[str, str]
    study: dict[str, str]
    series: dict[str, str]
    orientation: tuple[float, ...]
    """ImageOrientationPatient, LPS: direction of a row, then of a column."""
    pixel_spacing_mm: tuple[float, float]
    rows_columns: tuple[int, int]
    slices: tuple[SourceSlice, ...]
    """In the order of the volume's z."""
    notes: tuple[str, ...] = ()


class Converted(Record):
    """What became of one series."""

    series: str
    output: Path | None = None
    sidecar: Path | None = None
    shape: tuple[int, int, int] | None = None
    spacing_mm: tuple[float, float, float] | None = None
    reason: str | None = None
    """Why there is no output."""


def convert(source: Path, output: Path, *, on_series: Callable[[str], None] | None = None) -> list[Converted]:
    """Write every regular image series in and below a folder as NIfTI; the others are reported with their reason.

    Parameters
    ----------
    source : Path
        Folder of DICOM files, at any depth.
    output : Path
        Folder for ``<name>.nii.gz`` and ``<name>.json``. A series is named after its folder, and its number where that holds several.
    on_series : callable, optional
        Receives each series' name when the series is done.

    Raises
    ------
    DatasetError
        If there is no image series.
    """
    if not source.is_dir():
        raise DatasetError(f"{source}: no such folder; give a folder of DICOM files")
    found = find_series(source)
    if not found:
        raise DatasetError(f"{source}: no DICOM image in or below this folder")
    done = []
    for name, series in zip(_names(source, found), found, strict=True):
        done.append(_convert(source, name, series, output))
        if on_series:
            on_series(name)
    return done


def _convert(source: Path, name: str, series: Series, output: Path) -> Converted:
    target, sidecar = output / f"{name}.nii.gz", output / f"{name}.json"
    try:
        _require_own(target, sidecar, series)
        stack = stack_of(series)
        voxels = read_voxels(stack)
        # First: a volume without it would be taken for somebody else's.
        _sidecar(source, series, stack).write(sidecar)
        write_volume(target, voxels, stack.grid)
    except CaseError as error:
        return Converted(series=name, reason=str(error))
    grid = stack.grid
    return Converted(series=name, output=target, sidecar=sidecar, shape=grid.shape, spacing_mm=grid.spacing_mm)


def _require_own(target: Path, sidecar: Path, series: Series) -> None:
    """Refuse to overwrite a file that does not come from this series."""
    if not target.exists():
        return
    try:
        known = Sidecar.read(sidecar).series.get("SeriesInstanceUID", "")
    except ArtefactError:
        known = ""
    if known != series.identity["series"].get("SeriesInstanceUID", "") or not known:
        raise CaseError(f"{target}: is there already and is not this series; choose another output folder")


def _sidecar(source: Path, series: Series, stack: Stack) -> Sidecar:
    first = stack.slices[0]
    return Sidecar(
        **series.identity,
        orientation=first.orientation or (),
        pixel_spacing_mm=first.pixel_spacing_mm or (1.0, 1.0),
        rows_columns=first.shape,
        slices=tuple(
            SourceSlice(
                file=str(s.file.relative_to(source)),
                sop_class_uid=s.class_uid,
                sop_instance_uid=s.instance_uid,
                frame=s.frame,
                position_mm=s.position or (0.0, 0.0, 0.0),
            )
            for s in stack.slices
        ),
        notes=tuple(note.message for note in stack.notes),
    )


def _names(source: Path, found: list[Series]) -> list[str]:
    """A name of its own for each series: its folder's, and its number and a counter where that does not tell."""
    folders = [_common_folder(source, series) for series in found]
    per_folder = Counter(folders)
    names: list[str] = []
    for folder, series in zip(folders, found, strict=True):
        number = series.identity["series"].get("SeriesNumber", "")
        name = folder if per_folder[folder] == 1 else f"{folder}_series{number}"
        repeats = names.count(name)
        names.append(name if not repeats else f"{name}_{repeats + 1}")
    return names


def _common_folder(source: Path, series: Series) -> str:
    place = series.folder.relative_to(source)
    text = "_".join(place.parts) if place.parts else source.resolve().name
    return re.sub(r"[^\w.-]+", "_", text)
