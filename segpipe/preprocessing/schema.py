"""What preprocessing leaves beside a case's arrays."""

from segpipe.artefact import Artefact


class PreparedRecord(Artefact):
    """A preprocessed case. Written last: where it is, the arrays are whole."""

    case: str
    source_digest: str
    """Digest of the case's files (size, time) and of every choice that shaped the arrays."""
    shape: tuple[int, int, int]
    class_voxels: tuple[int, ...]
    """Voxels of each class index in the prepared segmentation."""


class PreprocessedIndex(Artefact):
    """All prepared cases of one configuration."""

    configuration: str
    plan_digest: str
    cases: tuple[str, ...]
    failed: dict[str, str] = {}
    """Cases that could not be prepared, with the reasons."""
