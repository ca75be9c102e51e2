"""What to predict: one file, a folder, or a manifest, as cases. Nothing is decoded."""

from dataclasses import dataclass
from pathlib import Path

from segpipe.dataset.match import group_images, image_files_in, manifest_images, read_manifest
from segpipe.errors import DatasetError, SegpipeError
from segpipe.io.formats import IMAGE_ENDINGS, ending_of, stem_of


@dataclass(frozen=True)
class InputCase:
    """Images of one case and where its segmentation goes."""

    id: str
    images: tuple[Path, ...]
    output: Path


def find_inputs(source: Path, output: Path) -> list[InputCase]:
    """List the cases of an input.

    Parameters
    ----------
    source : Path
        An image file, a folder of image files (channels by the suffix _0000, _0001, ...), or a manifest (.csv, .json).
    output : Path
        A folder; or a file, when ``source`` is one image.

    Raises
    ------
    DatasetError
        If nothing is found.
    SegpipeError
        If an output would overwrite an input.
    """
    if not source.exists():
        raise DatasetError(f"{source}: no such file or folder")
    if source.is_dir():
        cases = group_images(image_files_in(source))
    elif source.suffix.lower() in (".csv", ".json"):
        cases = _from_manifest(source)
    else:
        cases = {stem_of(source): [source]}
    if not cases:
        raise DatasetError(f"{source}: no image file found; endings read: {', '.join(IMAGE_ENDINGS)}")
    single = source.is_file() and ending_of(source) is not None and ending_of(output) is not None
    found = [
        InputCase(case, tuple(images), output if single else output / f"{case}{ending_of(images[0]) or ''}")
        for case, images in sorted(cases.items())
    ]
    for case in found:
        if case.output.resolve() in {i.resolve() for i in case.images}:
            raise SegpipeError(
                f"{case.output}: the segmentation would overwrite its own image; choose another output folder"
            )
    return found


def _from_manifest(path: Path) -> dict[str, list[Path]]:
    cases: dict[str, list[Path]] = {}
    for number, row in enumerate(read_manifest(path), start=1):
        images = manifest_images(row, path.parent)
        if not images:
            raise DatasetError(
                f"{path}: row {number} has no image; its columns are {', '.join(row)}; expected case, image[, image_2...]"
            )
        case = row.get("case") or stem_of(images[0])
        if case in cases or "/" in case:
            raise DatasetError(
                f"{path}: row {number}: case {case!r} stands twice or cannot be a file name; give each case its own id"
            )
        cases[case] = images
    return cases
