"""Images that nobody labelled, prepared for training beside the others."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from segpipe.core import seeds
from segpipe.core.artefact import json_digest, sha256_on_record
from segpipe.core.geometry import bounding_box
from segpipe.core.system_names import below
from segpipe.core.workspace import PreparedFiles, SoftLabelFiles
from segpipe.dataset.check import image_problems
from segpipe.dataset.load import load_image
from segpipe.dataset.schema import FileStamp
from segpipe.distillation.soft_labels import Source, called_labels
from segpipe.errors import CaseError
from segpipe.execution import processes
from segpipe.execution.processes import Workers
from segpipe.io.arrays import read_array
from segpipe.planning.schema import Configuration, Plan
from segpipe.preprocessing.kept import is_prepared, replace_segmentation, write_prepared
from segpipe.preprocessing.room import prepare_where_it_fits
from segpipe.version import CASES_AS_OF


def prepare_unlabelled(
    images: dict[str, tuple[Path, ...]],
    plan: Plan,
    configuration: Configuration,
    folder: Path,
    *,
    workers: Workers,
    bytes_each: int,
    on_case: Callable[[str], None] = lambda _: None,
) -> tuple[list[Source], dict[str, str]]:
    """Prepare images as those of a dataset; returns the cases, and those that failed with their reasons.

    Parameters
    ----------
    images : dict
        Files of each case.
    plan, configuration
        Plan and configuration of the student.
    folder : Path
    workers : int or executor, optional
        Most worker processes, or whose.
    bytes_each : int
        Forecast of a case's memory.
    on_case : callable
        Called with each case when it is done.
    """
    folder.mkdir(parents=True, exist_ok=True)
    work = partial(_prepare, plan=plan, configuration=configuration, folder=folder)
    done, failed = [], {}
    for outcome in processes.map_cases(work, list(images.items()), workers=workers, bytes_each=bytes_each):
        case, files = outcome.item
        if outcome.failure:
            failed[case] = outcome.failure
        else:
            done.append(Source(case, files, PreparedFiles(below(folder, case))))
        on_case(case)
    return sorted(done, key=lambda s: s.id), failed


def take_over_calls(source: Source, soft: SoftLabelFiles, plan: Plan, configuration: Configuration) -> None:
    """Let the sampler know where the teachers see structures, so that patches are centred on them as on labelled ones."""
    prepared, kept = (sha256_on_record(files.record) for files in (source.prepared, soft))
    segmentation = read_array(source.prepared.segmentation, prepared.get(source.prepared.segmentation.name))
    outputs, shares = (read_array(file, kept.get(file.name)) for file in (soft.outputs, soft.shares))
    called = called_labels(outputs, shares, plan.labels)
    segmentation = np.where(segmentation < 0, segmentation, called).astype(np.int16)
    replace_segmentation(source.prepared, segmentation, plan, configuration, seeds.stream(0, "foreground", source.id))


def _prepare(item: tuple[str, tuple[Path, ...]], plan: Plan, configuration: Configuration, folder: Path) -> None:
    case, paths = item
    files = PreparedFiles(below(folder, case))
    stamps = [FileStamp.of(path).model_dump(mode="json") for path in paths]
    shaped = {"spacing_mm", "patch_size", "normalisation", "use_mask_for_norm"}
    source = json_digest(
        [
            CASES_AS_OF,
            stamps,
            plan.orientation,
            plan.transpose_forward,
            [s.model_dump(mode="json") for s in plan.intensities],
            configuration.model_dump(mode="json", include=shaped),
        ]
    )
    if is_prepared(files, source):
        return
    loaded = load_image(
        case, list(paths), plan.channel_names, plan.orientation, resample_channels=plan.resample_channels
    )
    problems = image_problems(loaded.volume.array)
    if problems:
        raise CaseError("; ".join(f"{rule}: {message}" for rule, message in problems))
    # As the decoded cases of a dataset are kept.
    image = loaded.volume.cropped(bounding_box((loaded.volume.array != 0).any(axis=0)))
    nothing = np.full(image.grid.shape, plan.labels.background, dtype=np.uint32)
    prepared = prepare_where_it_fits(image, nothing, plan, configuration)
    write_prepared(files, prepared, source, plan, configuration, seeds.stream(0, "none", case))
