"""What preprocessing leaves beside a case's arrays."""

from segpipe.core.artefact import ArraysRecord, Artefact


class PreparedRecord(ArraysRecord):
    """A preprocessed case."""

    case: str
    source_digest: str
    """Digest of the content of the case's files and of every choice that shaped the arrays."""
    shape: tuple[int, int, int]
    index_voxels: tuple[int, ...]
    """Voxels of each label index in the prepared segmentation; those ignored come last, where a value is ignored."""


class PreprocessedIndex(Artefact):
    """All prepared cases of one configuration."""

    configuration: str
    plan_digest: str
    cases: tuple[str, ...]
    failed: dict[str, str] = {}
    """Cases that could not be prepared, with the reasons."""
