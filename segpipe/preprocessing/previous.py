"""What a cascade's first stage found in each case, on the grid of its second stage, exactly as prediction brings it there."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from segpipe.core.artefact import ArraysRecord, json_digest
from segpipe.core.regular import lies
from segpipe.core.workspace import PreparedFiles
from segpipe.dataset.load import labels_on, load_image, read_label_file
from segpipe.dataset.schema import Case, FileStamp
from segpipe.errors import ArtefactError, CaseError
from segpipe.execution import processes
from segpipe.execution.processes import Workers
from segpipe.io.arrays import require_sha256, write_array
from segpipe.planning.schema import Configuration, Plan
from segpipe.preprocessing.room import prepare_where_it_fits

logger = logging.getLogger(__name__)


class PreviousRecord(ArraysRecord):
    """What a first stage found in a case."""

    source_digest: str


@dataclass(frozen=True)
class FoundBefore:
    """A case with the segmentation that a first stage predicted, without having seen the case in training."""

    case: Case
    segmentation: Path
    model: str
    """Digest of the first stage's model."""

    @property
    def id(self) -> str:
        """The case's."""
        return self.case.id


def prepare_previous(
    found: list[FoundBefore],
    plan: Plan,
    configuration: Configuration,
    folder: Path,
    *,
    workers: Workers,
    bytes_each: int,
    on_case: Callable[[str], None],
) -> dict[str, str]:
    """Prepare the first stage's segmentations; returns the reason of each case that failed."""
    work = partial(_prepare_one, plan=plan, configuration=configuration, folder=folder)
    failed = {}
    for outcome in processes.map_cases(work, found, workers=workers, bytes_each=bytes_each):
        if outcome.failure:
            failed[outcome.item.id] = outcome.failure
        on_case(outcome.item.id)
    return failed


def _prepare_one(found: FoundBefore, plan: Plan, configuration: Configuration, folder: Path) -> None:
    files = PreparedFiles(folder / found.id)
    stamps = [
        FileStamp.of(p).model_dump(mode="json") for p in (found.segmentation, *(i.path for i in found.case.images))
    ]
    source = json_digest([found.model, stamps, plan.digest(), configuration.name])
    if _is_prepared(files, source):
        return
    files.record.unlink(missing_ok=True)
    paths = [i.path for i in found.case.images]
    image = load_image(found.id, paths, plan.channel_names, plan.orientation, resample_channels=plan.resample_channels)
    labels = labels_on(found.id, image, read_label_file(found.id, found.segmentation, plan.labels)).array
    prepared = prepare_where_it_fits(image.volume, labels, plan, configuration).segmentation
    if prepared is None:
        raise CaseError(f"case {found.id}: nothing was prepared of {found.segmentation}")
    files.root.mkdir(parents=True, exist_ok=True)
    sha256 = write_array(files.previous, np.maximum(prepared, 0), configuration.patch_size)
    PreviousRecord(source_digest=source, arrays={files.previous.name: sha256}).write(files.record)


def _is_prepared(files: PreparedFiles, source: str) -> bool:
    if not (lies(files.record) and lies(files.previous)):
        return False
    try:
        record = PreviousRecord.read(files.record)
        if record.source_digest != source:
            return False
        require_sha256(files.previous, record.sha256_of(files.previous))
    except ArtefactError as error:
        logger.warning("case %s is prepared again: %s", files.root.name, error)
        return False
    return True
