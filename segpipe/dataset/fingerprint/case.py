"""Read, check and measure one case; what was measured is kept beside its arrays."""

import logging
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from segpipe.core.artefact import ArraysRecord
from segpipe.core.geometry import Shape
from segpipe.core.regular import lies
from segpipe.core.workspace import Workspace
from segpipe.dataset.check import Expectations
from segpipe.dataset.content import image_digest
from segpipe.dataset.fingerprint.measure import CaseMeasurements, measure_case
from segpipe.dataset.fingerprint.schema import CaseFingerprint
from segpipe.dataset.schema import Case
from segpipe.dataset.store import CaseArrays, StoredCase, read_case
from segpipe.errors import ArtefactError
from segpipe.io.arrays import read_array, write_array

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class MeasuredCase:
    """Measurements of a usable case, and the digests by which equal images are found."""

    measurements: CaseMeasurements
    image_digest: str
    """Digest of the whole image (segpipe.dataset.content)."""
    label_digest: str
    """Digest of the label array, as if it were an image."""

    @property
    def fingerprint(self) -> CaseFingerprint:
        """What the fingerprint keeps of the case."""
        return self.measurements.fingerprint


class _Measured(ArraysRecord):
    """Measurements of one case as a file. Another version's are made again."""

    schema_version: int = 2
    content: str
    """Digest of what was measured."""
    fingerprint: CaseFingerprint
    image_digest: str
    label_digest: str


def measured_case(case: Case, expected: Expectations, workspace: Workspace) -> tuple[StoredCase, list[MeasuredCase]]:
    """Return a case's record, and its measurements where it is usable; an unchanged case is neither read nor measured again."""
    files = workspace.case(case.id)
    reading = read_case(case, expected, files)
    record = reading.record
    if record.shape is None:
        return record, []
    content = record.content_digest()
    if lies(files.measurements) and lies(files.quantiles):
        try:
            known = _Measured.read(files.measurements)
            if known.content == content:
                quantiles = read_array(files.quantiles, known.sha256_of(files.quantiles))
                found = CaseMeasurements(known.fingerprint, quantiles)
                return record, [MeasuredCase(found, known.image_digest, known.label_digest)]
        except ArtefactError as error:
            logger.warning("case %s is measured again: %s", case.id, error)
    arrays = reading.arrays()
    measurements = measure_case(case.id, arrays.image, arrays.labels, record.shape, expected.aside)
    image, labels = _digests(arrays, record.shape, record.start)
    files.measurements.unlink(missing_ok=True)
    _Measured(
        content=content,
        fingerprint=measurements.fingerprint,
        image_digest=image,
        label_digest=labels,
        arrays={files.quantiles.name: write_array(files.quantiles, measurements.quantiles)},
    ).write(files.measurements)
    return record, [MeasuredCase(measurements, image, labels)]


def _digests(arrays: CaseArrays, shape: Shape, start: Shape) -> tuple[str, str]:
    """Digests of the whole image and label: what was cut off around the kept box is 0."""
    spacing = arrays.image.grid.spacing_mm
    whole = [_whole(array, shape, start) for array in (arrays.image.array, arrays.labels[None])]
    return image_digest(whole[0], spacing), image_digest(whole[1], spacing)


def _whole(array: NDArray[np.generic], shape: Shape, start: Shape) -> NDArray[np.generic]:
    if array.shape[1:] == shape:
        return array
    whole = np.zeros((array.shape[0], *shape), dtype=array.dtype)
    z, y, x = (slice(first, first + n) for first, n in zip(start, array.shape[1:], strict=True))
    whole[:, z, y, x] = array
    return whole
