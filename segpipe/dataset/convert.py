"""DICOM series to NIfTI files, each volume with a sidecar that keeps what is needed to write results back."""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from segpipe.core.artefact import Artefact, Record, RecordedPath, added_later
from segpipe.core.given import Given
from segpipe.core.regular import special
from segpipe.core.system_names import real_path, shown_name
from segpipe.core.whole import is_full, sweep
from segpipe.errors import ArtefactError, CaseError, DatasetError
from segpipe.execution.processes import reason_of
from segpipe.io.dicom import (
    Found,
    Series,
    find_series,
    forget_last_file,
    looks_like_dicom,
    read_voxels,
    require_volume_file,
    series_volumes,
)
from segpipe.io.formats import archive_of, content_of, reading, stem_of, volume_written
from segpipe.io.notes import shear_notes
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
    sha256: str = added_later("")
    """Digest of the volume's file."""


class Converted(Record):
    """What became of one volume, or of a series that is none."""

    series: str
    output: RecordedPath | None = None
    sidecar: RecordedPath | None = None
    shape: tuple[int, int, int] | None = None
    spacing_mm: tuple[float, float, float] | None = None
    reason: str | None = None
    """Why there is no output."""
    notes: tuple[str, ...] = ()
    """What is odd about the volume, or was assumed."""


@dataclass(frozen=True)
class _Planned:
    """A volume to be written, or why a series is none."""

    series: Series
    stack: Stack | None = None
    suffix: str = ""
    reason: str | None = None


def convert(
    source: Path,
    output: Path,
    *,
    on_series: Callable[[str], None] | None = None,
    on_given: Callable[[Given], None] | None = None,
) -> list[Converted]:
    """Write every regular image series in and below a folder as NIfTI; the others are reported with their reason.

    Parameters
    ----------
    source : Path
        Folder of DICOM files, at any depth; or a DICOM file that is a volume.
    output : Path
        Folder for ``<name>.nii.gz`` and ``<name>.json``. A series is named after its folder, and its number where that holds several.
        Where a series holds several regular volumes, each is written, with what tells it apart: ``<name>_e2``, ``<name>_b1000``.
    on_series : callable, optional
        Receives the name of each volume when it is done.
    on_given : callable, optional
        Receives the count of the files: how many were given, and which are in no series.

    Raises
    ------
    DatasetError
        If there is no image series.
    UnreadableFileError
        If ``source`` is a file that is no volume.
    """
    found = _found(source)
    if on_given:
        on_given(found.given)
    sweep(output)
    planned = [volume for series in found.series for volume in _planned(series)]
    done = []
    for name, volume in zip(_names(source, found.series, planned), planned, strict=True):
        done.append(_convert(source, name, volume, output))
        if on_series:
            on_series(name)
    forget_last_file()
    return done


def _found(source: Path) -> Found:
    if not source.exists():
        raise DatasetError(
            f"{source}: no such folder or file; give a folder of DICOM files, or a DICOM file that is a volume"
        )
    if why := special(source):
        raise DatasetError(why)
    if source.is_file():
        if not looks_like_dicom(source):
            raise DatasetError(
                f"{source}: is {archive_of(source) or 'not a DICOM file'}; expected a folder of DICOM files, or a DICOM file that is "
                "a volume"
            )
        require_volume_file(source)
    found = find_series(source)
    if not found.series:
        kinds = Counter(f"{other.what}{other.advice}" for other in found.others)
        listed = "; ".join(f"{n} file(s) of {kind}" for kind, n in kinds.most_common(3))
        raise DatasetError(f"{source}: no DICOM image in or below this folder{': ' + listed if listed else ''}")
    return found


def _planned(series: Series) -> list[_Planned]:
    try:
        return [_Planned(series, volume.stack, volume.suffix) for volume in series_volumes(series)]
    except Exception as error:  # noqa: BLE001 - one series never costs the others
        return [_Planned(series, reason=reason_of(error, series.title))]


def _convert(source: Path, name: str, volume: _Planned, output: Path) -> Converted:
    if volume.stack is None:
        return Converted(series=name, reason=volume.reason)
    target, sidecar = output / f"{name}.nii.gz", output / f"{name}.json"
    grid = volume.stack.grid
    try:
        _require_own(target, sidecar, volume.series, volume.stack)
        with reading(volume.series.folder, {s.file for s in volume.stack.slices}):
            voxels = read_voxels(volume.stack)
        record = _sidecar(source, volume.series, volume.stack)
        try:
            with volume_written(target, voxels, grid) as whole_volume:
                # Before the volume takes its place: one without a sidecar would be taken for somebody else's.
                record.model_copy(update={"sha256": content_of((whole_volume,))}).write(sidecar)
        except OSError as error:
            if is_full(error):
                raise
            raise CaseError(f"{target}: cannot be written ({error}); choose another output folder") from error
    except Exception as error:  # noqa: BLE001 - one series never costs the others
        return Converted(series=name, reason=reason_of(error, name))
    return Converted(
        series=name, output=target, sidecar=sidecar, shape=grid.shape, spacing_mm=grid.spacing_mm, notes=record.notes
    )


def _require_own(target: Path, sidecar: Path, series: Series, stack: Stack) -> None:
    """Refuse to overwrite a file that does not come from this series, of which that is not known, or that somebody changed."""
    if not target.exists():
        return
    own = {level: series.identity[level] for level in ("patient", "study", "series")}
    try:
        known = Sidecar.read(sidecar)
        found = {"patient": known.patient, "study": known.study, "series": known.series}
    except ArtefactError:
        found = {}
    if found != own:
        raise CaseError(f"{target}: is there already and is not this series; choose another output folder")
    if known.sha256 and content_of((target,)) != known.sha256:
        raise CaseError(
            f"{target}: was changed after segpipe convert wrote it, and is kept; move it away, or choose another output folder"
        )
    if own["series"].get("SeriesInstanceUID"):
        return
    # Without the series' own: the images tell.
    images = {(s.instance_uid, s.frame) for s in stack.slices}
    if any(not uid for uid, _ in images):
        raise CaseError(
            f"{target}: is there already; without SeriesInstanceUID and SOPInstanceUID it is not known whether it is this series: "
            "choose another output folder"
        )
    if images != {(s.sop_instance_uid, s.frame) for s in known.slices}:
        raise CaseError(
            f"{target}: is there already and holds other images than this series, which has no SeriesInstanceUID; choose another output "
            "folder"
        )


def _sidecar(source: Path, series: Series, stack: Stack) -> Sidecar:
    first = stack.slices[0]
    return Sidecar(
        **series.identity,
        orientation=first.orientation or (),
        pixel_spacing_mm=first.pixel_spacing_mm or (1.0, 1.0),
        rows_columns=first.shape,
        slices=tuple(
            SourceSlice(
                file=shown_name(s.file.relative_to(source if source.is_dir() else source.parent).as_posix()),
                sop_class_uid=s.class_uid,
                sop_instance_uid=s.instance_uid,
                frame=s.frame,
                position_mm=s.position or (0.0, 0.0, 0.0),
            )
            for s in stack.slices
        ),
        notes=tuple(note.message for note in (*stack.notes, *shear_notes(stack.grid))),
    )


def _names(source: Path, found: Sequence[Series], planned: Sequence[_Planned]) -> list[str]:
    """A name of its own for each volume: its folder's, its series' number where that holds several, and what tells it apart."""
    per_folder = Counter(_base_name(source, series) for series in found)
    # Some file systems take capitals and small letters for the same.
    taken: set[str] = set()
    return [_free_name(_name(source, volume, per_folder), volume.suffix, taken) for volume in planned]


def _name(source: Path, volume: _Planned, per_folder: Counter[str]) -> str:
    base = _base_name(source, volume.series)
    number = volume.series.identity["series"].get("SeriesNumber", "")
    return base if per_folder[base] == 1 else f"{base}_series{_as_file_name(number)}"


def _free_name(base: str, suffix: str, taken: set[str]) -> str:
    name, repeat = f"{base}{suffix}", 1
    while name.lower() in taken:
        repeat += 1
        name = f"{base}_{repeat}{suffix}"
    taken.add(name.lower())
    return name


def _base_name(source: Path, series: Series) -> str:
    if source.is_file():
        return _as_file_name(stem_of(source))
    place = series.folder.relative_to(source)
    return _as_file_name("_".join(place.parts) if place.parts else real_path(source).name)


def _as_file_name(text: str) -> str:
    return re.sub(r"[^\w.-]+", "_", text)
