"""Prepared arrays of one case, in its folder: whether they are there, and written."""

from numpy.random import Generator

from segpipe.core.workspace import PreparedFiles
from segpipe.io.arrays import write_array
from segpipe.planning.schema import Configuration, Plan
from segpipe.preprocessing.foreground import foreground_index, index_voxels
from segpipe.preprocessing.prepare import Prepared
from segpipe.preprocessing.schema import PreparedRecord


def is_prepared(files: PreparedFiles, source: str) -> bool:
    """Whether a case's arrays are whole, and made of the source with this digest; where not, the folder is made ready for them."""
    whole = all(f.is_file() for f in (files.record, files.image, files.segmentation, files.foreground))
    if whole and PreparedRecord.read(files.record).source_digest == source:
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
    write_array(files.image, prepared.image, patch)
    write_array(files.segmentation, prepared.segmentation, patch)
    write_array(files.foreground, foreground_index(prepared.segmentation, plan.labels, rng))
    z, y, x = prepared.segmentation.shape
    voxels = index_voxels(prepared.segmentation, plan.labels)
    PreparedRecord(case=files.root.name, source_digest=source, shape=(z, y, x), index_voxels=voxels).write(files.record)
