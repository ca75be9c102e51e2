"""A case on its way through prediction, with what was found so far or the reason why there is nothing."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from filelock import FileLock

from segpipe.dataset.load import LoadedImage
from segpipe.dataset.schema import FileStamp
from segpipe.errors import NoRoomError
from segpipe.execution.processes import reason_of
from segpipe.inference.inputs import InputCase
from segpipe.inference.outputs import Extras
from segpipe.inference.predictor import Prediction
from segpipe.preprocessing.prepare import Prepared


@dataclass
class Job:
    """A case on its way through the stage."""

    case: InputCase
    claim: FileLock
    start: float = field(default_factory=time.perf_counter)
    seconds: dict[str, float] = field(default_factory=dict)
    stamps: tuple[FileStamp, ...] = ()
    content: str = ""
    image: LoadedImage | None = None
    percentiles: tuple[tuple[float, ...], ...] = ()
    header_doubts: tuple[str, ...] = ()
    prepared: tuple[Prepared | None, ...] = ()
    waits: bool = False
    """Whether it needs the memory that other cases hold: it is read when these are done."""
    remarks: tuple[str, ...] = ()
    prediction: Prediction | None = None
    extras: Extras | None = None
    peak_gb: float | None = None
    failure: str | None = None

    def attempt(self, work: Callable[["Job"], None]) -> "Job":
        """Do a part of the work unless an earlier one failed; whatever it raises becomes the case's reason."""
        if self.failure is not None:
            return self
        try:
            work(self)
        except NoRoomError as error:
            if not self.waits and self.prediction is None:
                self.waits, self.image, self.prepared = True, None, ()
            else:
                self.failure = str(error)
        except Exception as error:  # noqa: BLE001 - the reason is the case's result
            # A full disk is no case's fault, and is raised again.
            self.failure = reason_of(error, f"case {self.case.id}")
        return self
