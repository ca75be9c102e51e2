"""The files of a folder as image series: one patient, one study, one frame of reference each. What is no image is counted."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from os.path import commonpath
from pathlib import Path
from typing import Any

from segpipe.core.given import Given, PassedOver
from segpipe.core.regular import files_below, special
from segpipe.core.whole import said_by_system
from segpipe.errors import IrregularSeriesError, UnreadableFileError
from segpipe.io.dicom_files import Damaged, DicomFile, OtherObject, kept_back, looks_like_dicom, open_file
from segpipe.io.dicom_frames import slices_of
from segpipe.io.notes import Note
from segpipe.io.series import MIN_SLICES, Stack
from segpipe.io.slices import Slice
from segpipe.io.volumes import Volume, only_volume, volumes_of

_PATIENT = ("PatientID", "PatientName", "PatientBirthDate", "PatientSex")
_STUDY = (
    "StudyInstanceUID",
    "StudyID",
    "StudyDate",
    "StudyTime",
    "AccessionNumber",
    "ReferringPhysicianName",
    "StudyDescription",
)
_SERIES = (
    "SeriesInstanceUID",
    "SeriesNumber",
    "SeriesDescription",
    "Modality",
    "FrameOfReferenceUID",
    "PositionReferenceIndicator",
)
# Attributes that the images of a series share. Programs that remove names may give one series UID to several.
_SHARED = ("PatientID", "StudyInstanceUID", "FrameOfReferenceUID", "SeriesNumber", "Modality", "SOPClassUID")
# Without these, positions cannot be compared. A study's UID that each file has of its own was made up file by file.
_OF_ONE_SPACE = ("PatientID", "FrameOfReferenceUID")
_SHOWN = 3


@dataclass(frozen=True)
class Series:
    """The files of one image series, as its headers describe it."""

    uid: str
    folder: Path
    """The one that holds all its files."""
    slices: tuple[Slice, ...]
    identity: dict[str, dict[str, str]]
    """Attributes of patient, study and series, by level."""
    problem: str | None = None
    """Why its slices cannot be trusted, when that is known before they are ordered."""
    notes: tuple[Note, ...] = ()
    """What is odd about its files."""
    n_files: int = 0
    """How many images it has; some of them may be unreadable."""

    @property
    def title(self) -> str:
        """Number, description and size, for messages."""
        told = self.identity["series"]
        return (
            f"series {told.get('SeriesNumber', '?')} {told.get('SeriesDescription', '')!r} "
            f"({max(self.n_files, len(self.slices))} images)"
        )


@dataclass(frozen=True)
class Found:
    """What a folder holds."""

    series: tuple[Series, ...]
    others: tuple[OtherObject, ...]
    """DICOM objects that are no images."""
    given: Given
    """Its files: how many, and which are in no series."""


def find_series(source: Path) -> Found:
    """Return every image series in and below a folder, by uid; or that of a single file."""
    files = files_of(source)
    opened = [_opened(f) for f in files if source.is_file() or looks_like_dicom(f)]
    images = [o for o in opened if isinstance(o, DicomFile)]
    others = tuple(o for o in opened if isinstance(o, OtherObject))
    damaged = [*(o for o in opened if isinstance(o, Damaged)), *_no_files(source)]
    by_uid: dict[str, list[DicomFile]] = defaultdict(list)
    for image in images:
        by_uid[_uid_of(image)].append(image)
    found = [s for uid, members in sorted(by_uid.items()) for s in _series_of_uid(uid, members, others, damaged)]
    found += _lost_series(damaged, images)
    seen = {o.path for o in opened}
    passed = [PassedOver(what=_name(source, o.path), why=f"{o.what}, no image") for o in others]
    passed += [PassedOver(what=_name(source, f), why="not DICOM") for f in files if f not in seen]
    given = Given(kind=f"files of {source.name}", n_given=len(files), passed_over=tuple(passed))
    return Found(tuple(found), others, given)


def _no_files(source: Path) -> list[Damaged]:
    """What lies in the place of files and is none: links that lead nowhere, pipes, closed folders. Each may have held a slice."""
    if source.is_file():
        return []
    closed: list[OSError] = []
    others = sorted(f for f in files_below(source, closed) if not f.is_file() and not f.name.startswith("."))
    lost = [Damaged(f, special(f) or _dangling(f)) for f in others]
    return lost + [
        Damaged(Path(str(error.filename)), f"{said_by_system(error)}; ask for the right to read it, or take it away")
        for error in closed
    ]


def _dangling(link: Path) -> str:
    return f"{link}: is a link to {link.readlink()}, which is not there; restore the file or take the link away"


def _opened(file: Path) -> DicomFile | OtherObject | Damaged:
    """Open a file and read what identifies it, so that pydicom's warnings of its values are known as its own."""
    with kept_back() as texts:
        opened = open_file(file)
        if not isinstance(opened, DicomFile):
            return opened
        for name in (*_PATIENT, *_STUDY, *_SERIES, *_SHARED):
            _value(opened, name)
    return replace(opened, remarks=tuple(dict.fromkeys((*opened.remarks, *texts))))


def files_of(source: Path) -> list[Path]:
    """Return the files in and below a folder but hidden ones, sorted; a file itself."""
    if source.is_file():
        return [source]
    return sorted(f for f in files_below(source) if f.is_file() and not f.name.startswith("."))


def stack_of(series: Series) -> Stack:
    """Order a series' slices to a regular volume.

    Raises
    ------
    IrregularSeriesError
        With the reason, when it is none, or several.
    """
    stack: Stack = _ordered(series, only_volume)
    return replace(stack, notes=(*series.notes, *stack.notes))


def series_volumes(series: Series) -> list[Volume]:
    """Order a series' slices to one or several regular volumes.

    Raises
    ------
    IrregularSeriesError
        With the reason, when they are none.
    """
    volumes: list[Volume] = _ordered(series, volumes_of)
    return [replace(v, stack=replace(v.stack, notes=(*series.notes, *v.stack.notes))) for v in volumes]


def _ordered(series: Series, order: Any) -> Any:
    try:
        if series.problem:
            raise IrregularSeriesError(series.problem)
        return order(series.slices)
    except IrregularSeriesError as error:
        remarks = "".join(f"; {n.message}" for n in series.notes if n.severity == "warning")
        raise IrregularSeriesError(f"{series.title}: {error}{remarks}") from error


def _name(source: Path, file: Path) -> str:
    return file.relative_to(source).as_posix() if source.is_dir() else file.name


def _uid_of(image: DicomFile) -> str:
    return _value(image, "SeriesInstanceUID") or str(image.path.parent)


def _value(image: DicomFile, name: str) -> str:
    try:
        return str(image.header.get(name) or "").strip()
    except Exception:  # noqa: BLE001 - pydicom converts a value when it is asked for; one that cannot be read identifies nothing
        return ""


def _lost_series(damaged: Sequence[Damaged], images: Sequence[DicomFile]) -> list[Series]:
    """Damaged files beside no image that they may belong to are a lost series, and must not pass in silence."""
    uids, parents = {_uid_of(i) for i in images}, {i.path.parent for i in images}
    lost: dict[str, list[Damaged]] = defaultdict(list)
    for file in damaged:
        if file.series_uid not in uids if file.series_uid else file.path.parent not in parents:
            lost[file.series_uid or str(file.path.parent)].append(file)
    empty: dict[str, dict[str, str]] = {"patient": {}, "study": {}, "series": {}}
    return [
        Series(
            uid, files[0].path.parent, (), empty, f"{files[0].problem}; it may be a slice of a series", (), len(files)
        )
        for uid, files in sorted(lost.items())
    ]


def _series_of_uid(
    uid: str, images: list[DicomFile], others: Sequence[OtherObject], damaged: Sequence[Damaged]
) -> list[Series]:
    """Return the series of one uid: several where its images belong to several patients, studies, frames of reference, ..."""
    by_identity: dict[tuple[str, ...], list[DicomFile]] = defaultdict(list)
    for image in images:
        by_identity[tuple(_value(image, name) for name in _SHARED)].append(image)
    notes = _object_notes(uid, others)
    if len(by_identity) == 1:
        return [_series(uid, images, notes, damaged)]
    told = [(name, sorted({key[i] for key in by_identity})) for i, name in enumerate(_SHARED)]
    differing = "; ".join(
        f"{name} ({', '.join(v or 'none' for v in values[:_SHOWN])}{', ...' if len(values) > _SHOWN else ''})"
        for name, values in told
        if len(values) > 1
    )
    problem = f"one SeriesInstanceUID stands in {len(images)} images that differ in {differing}"
    if max(map(len, by_identity.values())) < MIN_SLICES and not any("NumberOfFrames" in i.header for i in images):
        whole = _series(uid, images, notes, damaged)
        n_values = {name: len(values) for name, values in told}
        if any(n_values[name] > 1 for name in _OF_ONE_SPACE) or 1 < n_values["StudyInstanceUID"] < len(images):
            return [replace(whole, problem=whole.problem or f"{problem}: identities were lost, export it again")]
        return [replace(whole, notes=(*whole.notes, Note("warning", problem)))]
    warning = Note("warning", f"{problem}: each is taken as a series of its own; make sure that each is whole")
    return [_series(uid, members, (*notes, warning), damaged) for _, members in sorted(by_identity.items())]


def _object_notes(uid: str, others: Sequence[OtherObject]) -> tuple[Note, ...]:
    own = [o for o in others if o.series_uid == uid]
    if not own:
        return ()
    names = ", ".join(f"{o.path.name}: {o.what}" for o in own[:_SHOWN])
    return (Note("note", f"{len(own)} object(s) of the series are no images and are passed over ({names})"),)


def _series(uid: str, images: list[DicomFile], notes: tuple[Note, ...], damaged: Sequence[Damaged]) -> Series:
    first = images[0]
    identity = {
        level: {name: value for name in names if (value := _value(first, name))}
        for level, names in (("patient", _PATIENT), ("study", _STUDY), ("series", _SERIES))
    }
    parents = {image.path.parent for image in images}
    folder = Path(commonpath(sorted(parents)))
    # A damaged file of an unknown series may be a slice of any that lies beside it.
    own = [d for d in damaged if d.series_uid == uid or (not d.series_uid and d.path.parent in parents)]
    if own:
        return Series(
            uid, folder, (), identity, f"{own[0].problem}; it may be a slice of this series", notes, len(images)
        )
    slices: list[Slice] = []
    remarks: dict[str, list[str]] = defaultdict(list)
    try:
        for image in images:
            with kept_back() as texts:
                slices += slices_of(image)
            for text in dict.fromkeys((*image.remarks, *texts)):
                remarks[" ".join(text.split())].append(image.path.name)
    except UnreadableFileError as error:
        return Series(uid, folder, (), identity, str(error), notes, len(images))
    return Series(uid, folder, tuple(slices), identity, notes=(*notes, *_remark_notes(remarks)))


def _remark_notes(remarks: dict[str, list[str]]) -> list[Note]:
    """What pydicom warned of, once for all files of a series."""
    return [
        Note("note", f"{text} ({len(names)} file(s), such as {names[0]})")
        for text, names in list(remarks.items())[:_SHOWN]
    ]
