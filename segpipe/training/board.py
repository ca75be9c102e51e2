"""TensorBoard, for those who asked for it; the log itself stays JSON lines."""

import json
from importlib.util import find_spec

from segpipe.errors import TrainingError
from segpipe.workspace import FoldFolder


def require_tensorboard() -> None:
    """Raise where TensorBoard is not installed."""
    if find_spec("tensorboard") is None:
        raise TrainingError("--tensorboard: TensorBoard is not installed; run `pip install 'segpipe[tensorboard]'`")


class Board:
    """Writes the lines of a fold's log that are new as scalars, under ``tensorboard/`` beside it."""

    def __init__(self, folder: FoldFolder) -> None:
        require_tensorboard()
        self.folder, self.shown = folder, 0

    def show(self) -> None:
        """Write what the log has gained."""
        # Imported here: the extra may be missing, and it takes seconds.
        from torch.utils.tensorboard.writer import SummaryWriter

        lines = [json.loads(line) for line in self.folder.log.read_text().splitlines()]
        with SummaryWriter(str(self.folder.root / "tensorboard"), purge_step=lines[self.shown]["epoch"]) as writer:
            for line in lines[self.shown :]:
                for name, value in line.items():
                    if isinstance(value, (int, float)) and name != "epoch":
                        writer.add_scalar(name, value, line["epoch"])
                for number, dice in enumerate(line["validation_dice"], start=1):
                    if dice is not None:
                        writer.add_scalar(f"validation_dice/{number}", dice, line["epoch"])
        self.shown = len(lines)
