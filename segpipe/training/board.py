"""TensorBoard, for those who asked for it; the log itself stays JSON lines."""

from importlib.util import find_spec

from segpipe.core.artefact import json_lines
from segpipe.core.regular import read_text
from segpipe.core.workspace import FoldFolder
from segpipe.errors import TrainingError


def require_tensorboard() -> None:
    """Raise where TensorBoard is not installed."""
    if find_spec("tensorboard") is None:
        raise TrainingError("--tensorboard: TensorBoard is not installed; run `pip install 'segpipe[tensorboard]'`")


class Board:
    """Writes the lines of a fold's log that are new as scalars, under ``tensorboard/`` beside it."""

    def __init__(self, folder: FoldFolder) -> None:
        require_tensorboard()
        # Imported here: the extra may be missing, and it takes seconds.
        from torch.utils.tensorboard.writer import SummaryWriter

        self.folder, self.shown = folder, 0
        # What an earlier start wrote is written again from the log, and takes its place.
        self.writer = SummaryWriter(str(folder.root / "tensorboard"), purge_step=1)

    def show(self) -> None:
        """Write what the log has gained."""
        lines = json_lines(read_text(self.folder.log), "epoch", "validation_dice")
        for line in lines[self.shown :]:
            for name, value in line.items():
                if isinstance(value, (int, float)) and name != "epoch":
                    self.writer.add_scalar(name, value, line["epoch"])
            for number, dice in enumerate(line["validation_dice"], start=1):
                if dice is not None:
                    self.writer.add_scalar(f"validation_dice/{number}", dice, line["epoch"])
        self.writer.flush()
        self.shown = len(lines)

    def close(self) -> None:
        """Finish writing."""
        self.writer.close()
