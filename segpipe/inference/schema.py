"""What prediction leaves behind: one line a case in predictions.jsonl."""

from pathlib import Path
from typing import Literal

from segpipe.artefact import Record
from segpipe.dataset.schema import FileStamp


class PredictionRow(Record):
    """What became of one case."""

    case: str
    status: Literal["done", "failed"]
    output: Path
    reason: str | None = None
    images: tuple[FileStamp, ...] = ()
    model: str
    """Digest of the model and of how it was applied."""
    elapsed_s: float = 0.0
    volumes_ml: dict[str, float] = {}
    """Per label name."""
    doubts: tuple[str, ...] = ()
    """Reasons to look at this case: its image may not be of the kind the model was trained on."""
