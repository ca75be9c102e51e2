"""Prepared arrays of one case, in its folder: whether they are there, and written."""

import logging

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from segpipe.core.regular import lies
from segpipe.core.workspace import PreparedFiles
from segpipe.errors import ArtefactError
from segpipe.io.arrays import require_sha256, write_array
from segpipe.planning.schema import Configuration, Plan
from segpipe.preprocessing.foreground import foreground_index, index_voxels
from segpipe.preprocessing.prepare import Prepared
from segpipe.preprocessing.schema import PreparedRecord

logger = logging.getLogger(__name__)


def is_prepared(files: PreparedFiles, source: str) -> bool:
    """Whether a case's arrays are whole, and made of the source with this digest; where not, the folder is made ready for them."""
    if _known(files, source):
        return True
    files.record.unlink(missing_ok=True)
    files.root.mkdir(exist_ok=True)
    return False


def write_prepared(
    files: PreparedFiles, prepared: Prepared, source: str, plan: Plan, configuration: Configuration, rng: Generator
) -> None:
    """Write a case's arrays, and last its record.

    Parameters
    ----------
    files : PreparedFiles
        Its name is the case.
    prepared : Prepared
        Image and segmentation.
    source : str
        Digest of what they were made of.
    plan, configuration
        What they were made by.
    rng : Generator
        Draws the voxels that patches are centred on.
    """
    assert prepared.segmentation is not None
    patch = (1,) * (3 - configuration.dims) + configuration.patch_size
    arrays = {
        files.image.name: write_array(files.image, prepared.image, patch),
        files.segmentation.name: write_array(files.segmentation, prepared.segmentation, patch),
        files.foreground.name: write_array(files.foreground, foreground_index(prepared.segmentation, plan.labels, rng)),
    }
    z, y, x = prepared.segmentation.shape
    voxels = index_voxels(prepared.segmentation, plan.labels)
    case = files.root.name
    record = PreparedRecord(case=case, source_digest=source, shape=(z, y, x), index_voxels=voxels, arrays=arrays)
    record.write(files.record)


def replace_segmentation(
    files: PreparedFiles, segmentation: NDArray[np.int16], plan: Plan, configuration: Configuration, rng: Generator
) -> None:
    """Write another segmentation (Z, Y, X) of label indices for a prepared case, and where patches are centred by it."""
    patch = (1,) * (3 - configuration.dims) + configuration.patch_size
    record = PreparedRecord.read(files.record)
    arrays = {
        **record.arrays,
        files.segmentation.name: write_array(files.segmentation, segmentation, patch),
        files.foreground.name: write_array(files.foreground, foreground_index(segmentation, plan.labels, rng)),
    }
    record.model_copy(update={"arrays": arrays}).write(files.record)


def _known(files: PreparedFiles, source: str) -> bool:
    """Whether the arrays are those of the record, and made of the source."""
    arrays = (files.image, files.segmentation, files.foreground)
    if not all(lies(f) for f in (files.record, *arrays)):
        return False
    try:
        record = PreparedRecord.read(files.record)
        if record.source_digest != source:
            return False
        for file in arrays:
            require_sha256(file, record.sha256_of(file))
    except ArtefactError as error:
        logger.warning("case %s is prepared again: %s", files.root.name, error)
        return False
    return True
