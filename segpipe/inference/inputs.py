"""What to predict: one file, a folder, or a manifest, as cases. Nothing is decoded."""

from dataclasses import dataclass
from pathlib import Path

from segpipe.dataset.match import group_images, image_files_in, manifest_images, read_manifest
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


@dataclass(frozen=True)
class InputCase:
    """Images of one case and where its segmentation goes."""

    id: str
    images: tuple[Path, ...]
    output: Path
    problem: str | None = None
    """Why this case cannot be predicted, when that is known before anything is read."""


def find_inputs(source: Path, output: Path, n_channels: int) -> list[InputCase]:
    """List the cases of an input.

    Parameters
    ----------
    source : Path
        An image file; a folder of image files, or of folders of DICOM files (channels by the suffix _0000, _0001, ...); a folder with
        the DICOM files of one series; or a manifest (.csv, .json).
    output : Path
        A folder; or a file, when ``source`` is one image.
    n_channels : int
        Channels of the model; with one, digits at the end of a name belong to the case unless they all are _0000.

    Raises
    ------
    DatasetError
        If nothing is found.
    SegpipeError
        If an output would overwrite an input.
    """
    if not source.exists():
        raise DatasetError(f"{source}: no such file or folder")
    if is_dicom(output):
        raise SegpipeError(f"{output}: DICOM is not written; give a folder, or a name that ends in .nii.gz")
    if source.is_dir():
        files = image_files_in(source)
        volumes = dicom_volumes(source)
        if holds_dicom(source, below=False) and (not volumes or {*files, *volumes} == {*volumes[:1]}):
            # The files of a series lie in it: the folder is the image, and what is below belongs to it.
            place = output if ending_of(output) else output / f"{source.name}{output_ending(source)}"
            cases = [InputCase(source.name, (source,), place)]
            files = [f for f in files if f.is_file() and not is_picture(f) and not is_dicom(f)]
        else:
            cases, files = [], sorted({*files, *volumes})
        cases += [_folder_case(c, found, output) for c, found in sorted(group_images(files, n_channels).items())]
    elif source.suffix.lower() in (".csv", ".json"):
        cases = _manifest_cases(source, output)
    else:
        place = output if ending_of(output) else output / f"{stem_of(source)}{output_ending(source)}"
        cases = [InputCase(stem_of(source), (source,), place)]
    if not cases:
        raise DatasetError(f"{source}: no image file and no DICOM found; endings read: {', '.join(IMAGE_ENDINGS)}")
    images = {image.resolve() for case in cases for image in case.images}
    for case in cases:
        if case.output.resolve() in images:
            raise SegpipeError(
                f"{case.output}: the segmentation would overwrite an image; choose another output folder"
            )
    return cases


def _folder_case(case: str, channels: dict[int, list[Path]], output: Path) -> InputCase:
    files = [file for _, found in sorted(channels.items()) for file in found]
    twice = next((found for found in channels.values() if len(found) > 1), None)
    problem = f"several files for one image: {', '.join(f.name for f in twice)}; keep one of them" if twice else None
    return InputCase(case, tuple(files), output / f"{case}{output_ending(files[0])}", problem)


def _manifest_cases(path: Path, output: Path) -> list[InputCase]:
    cases: dict[str, InputCase] = {}
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
        cases[case] = InputCase(case, tuple(images), output / f"{case}{output_ending(images[0])}")
    return list(cases.values())
