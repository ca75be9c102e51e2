"""What lies in a folder of images: each entry is an image, is passed over with the reason, or is no image at all."""

import os
from pathlib import Path
from typing import NamedTuple

from segpipe.core.given import Given, PassedOver
from segpipe.core.regular import special
from segpipe.core.system_names import name_problem, real_path, shown_name
from segpipe.core.whole import said_by_system
from segpipe.io.formats import ending_of, files_behind, is_image, is_segmentation, stem_of

# Files that accompany images and are none. A file of any other ending may be a case, and is named as one.
_NO_IMAGE = frozenset(
    (
        ".asc", ".bak", ".bval", ".bvec", ".cfg", ".csv", ".doc", ".docx", ".htm", ".html", ".ini", ".ipynb", ".itksnap", ".json",
        ".jsonl", ".label", ".lock", ".log", ".m", ".md", ".md5", ".mrml",
        ".odt", ".pdf", ".pkl", ".pptx", ".py", ".r", ".rst", ".rtf", ".segpipe", ".sh",
        ".sha1", ".sha256", ".sha512", ".svg", ".tmp", ".toml", ".tsv", ".txt", ".xls", ".xlsm",
        ".xlsx", ".xml", ".yaml", ".yml",
    )
)  # fmt: skip
# What file managers leave behind; nobody gave it.
_LITTER = frozenset(("thumbs.db", "desktop.ini", "__macosx", "icon\r"))
_COMPRESSION = (".gz", ".bz2", ".xz", ".zst", ".zip")
_MOST_LOOKED_AT = 10_000


class Entries(NamedTuple):
    """Images of a folder, sorted, dangling links among them, and the count of all that lies there."""

    images: list[Path]
    given: Given
    lost: tuple[tuple[str, str], ...] = ()
    """Entries that may be cases and are not read: the case's name, and what lies there with the reason."""

    def with_images(self, more: list[Path]) -> "Entries":
        """Return the entries with further images among them, such as DICOM files without an ending."""
        more = [p for p in more if name_problem(p.name) is None]
        names = {p.name for p in more}
        passed_over = tuple(p for p in self.given.passed_over if p.what not in names)
        lost = tuple(item for item in self.lost if item[0] not in names)
        return Entries(sorted({*self.images, *more}), self.given.model_copy(update={"passed_over": passed_over}), lost)


def without_segmentations(entries: Entries) -> Entries:
    """Return a folder of images without the segmentations that 3D Slicer saved there, which are counted as passed over."""
    found = [p for p in entries.images if is_segmentation(p)]
    passed_over = tuple(PassedOver(what=p.name, why="a segmentation, by its name, is no image") for p in found)
    given = entries.given.model_copy(update={"passed_over": (*entries.given.passed_over, *passed_over)})
    return entries._replace(images=[p for p in entries.images if p not in found], given=given)


def entries_of(folder: Path, kind: str = "", output: Path | None = None) -> Entries:
    """List the images directly in a folder: files with an image's ending, and folders of DICOM files.

    Hidden entries and what file managers leave behind are not counted. A link that leads nowhere, or a pipe, is listed among the images:
    whoever reads it reports it.

    Parameters
    ----------
    folder : Path
    kind : str
        What the entries are, in the plural; "entries of NAME/" unless given.
    output : Path, optional
        Folder for results, which may lie in this one; it is not counted.
    """
    entries = sorted(
        p
        for p in folder.iterdir()
        if not p.name.startswith(".") and p.name.lower() not in _LITTER and not _is_output(p, output)
    )
    # What has no name that can be kept is not opened: ITK ends the whole process there.
    unnamed = [p for p in entries if name_problem(p.name)]
    entries = [p for p in entries if p not in unnamed]
    images = [p for p in entries if is_image(p) or ((dangles(p) or special(p)) and ending_of(p) is not None)]
    taken = set(images)
    others = [p for p in entries if p not in taken]
    if others:
        # Voxels beside a header (.mhd) belong to it.
        behind = {part for image in images if image.is_file() for part in files_behind(image)}
        others = [p for p in others if p not in behind]
    read, names = {stem_of(image) for image in images}, {image.name for image in images}
    passed_over = [_beside(p, names) or _passed_over(p, read) for p in others] + [_unnamed(p) for p in unnamed]
    others += unnamed
    lost = tuple(
        (shown_name(p.name if p.is_dir() else name_without_format(p)), f"{item.what}: {item.why}")
        for p, item in zip(others, passed_over, strict=True)
        if item.a_case
    )
    given = Given(
        kind=kind or f"entries of {folder.name}/", n_given=len(images) + len(others), passed_over=tuple(passed_over)
    )
    return Entries(images, given, lost)


def _is_output(path: Path, output: Path | None) -> bool:
    """Tell whether an entry is the folder for results, or holds no images but those in it."""
    if output is None or not path.is_dir() or not real_path(output).is_relative_to(real_path(path)):
        return False
    return real_path(output) == real_path(path) or (
        output.is_dir() and (0, []) != _images_below(path) == _images_below(output)
    )


def _beside(path: Path, images: set[str]) -> PassedOver | None:
    """Return what a file is whose name begins with that of an image and its ending, such as a.nii.gz.unknown; None if it is none."""
    parts = path.name.split(".")
    image = next((name for n in range(1, len(parts)) if (name := ".".join(parts[:n])) in images), None)
    return (
        None if image is None or path.is_dir() else PassedOver(what=path.name, why="belongs to the image of its name")
    )


def dangles(path: Path) -> bool:
    """Tell whether a path is a link that leads nowhere."""
    return path.is_symlink() and not path.exists()


def absence_of(path: Path) -> str | None:
    """Return why a path is not there, in words for a message; None where it is."""
    if dangles(path):
        return f"{path.name}: link to {path.readlink()}, which is not there; mount or copy what it leads to"
    return None if path.exists() else f"{path}: no such file"


def format_of(path: Path) -> str:
    """Return the ending by which a file's format is known: ".mgz", ".nii.bz2"; empty if it has none."""
    suffixes = [s.lower() for s in path.suffixes]
    if len(suffixes) > 1 and suffixes[-1] in _COMPRESSION:
        return "".join(suffixes[-2:])
    return suffixes[-1] if suffixes else ""


def name_without_format(path: Path) -> str:
    """Return the name of a file whose format is not read, without its ending."""
    ending = format_of(path)
    return path.name[: -len(ending)] if ending else path.name


def _unnamed(path: Path) -> PassedOver:
    """Return an entry whose name cannot be kept."""
    problem = name_problem(path.name)
    assert problem is not None
    a_case = path.is_dir() or path.suffix.lower() not in _NO_IMAGE
    return PassedOver(what=shown_name(path.name), why=problem, a_case=a_case)


def _passed_over(path: Path, read: set[str]) -> PassedOver:
    if special(path):
        why = "no file: a pipe, a socket or a device"
        return PassedOver(what=path.name, why=why, a_case=path.suffix.lower() not in _NO_IMAGE)
    if dangles(path):
        # A link without an ending may lead to a patient's folder.
        lost = path.suffix.lower() not in _NO_IMAGE
        return PassedOver(what=f"{path.name} (to {path.readlink()})", why="link to what is not there", a_case=lost)
    if path.is_dir():
        n, closed = _images_below(path)
        if closed:
            why = f"{said_by_system(closed[0])}; ask for the right to read it, or take it away"
            return PassedOver(what=f"{path.name}/", why=why, a_case=True)
        if n and path.name in read:
            return PassedOver(what=f"{path.name}/", why="an image of this name is read")
        if n:
            why = "images in sub-folders are not read; list them in a manifest, or give the sub-folder"
            return PassedOver(what=f"{path.name}/ ({n} image{'s' * (n > 1)})", why=why, a_case=True)
        return PassedOver(what=f"{path.name}/", why="folder without images", a_case=ending_of(path) is not None)
    ending = format_of(path)
    if ending in _NO_IMAGE or not ending:
        return PassedOver(what=path.name, why="no image")
    if name_without_format(path) in read:
        return PassedOver(what=path.name, why="an image of this name is read")
    return PassedOver(what=path.name, why=f"the format {ending} is not read; convert to .nii.gz", a_case=True)


def _images_below(folder: Path) -> tuple[int, list[OSError]]:
    """Count the images in and below a folder, and return why folders there cannot be opened; a large tree is not walked to its end."""
    n = looked_at = 0
    closed: list[OSError] = []
    for place, _, names in os.walk(folder, onerror=closed.append):
        n += sum(
            not name.startswith(".") and ending_of(Path(name)) is not None and Path(place, name).is_file()
            for name in names
        )
        looked_at += len(names) + 1
        if looked_at >= _MOST_LOOKED_AT:
            break
    return n, closed
