"""Every error segpipe raises on purpose.

::

    SegpipeError                 one line on stderr, exit code 1
    ├── UsageError               options that do not go together, exit code 2
    ├── UnsavedError             a result cannot be written; it is shown first
    ├── DatasetError             the folder is not a dataset segpipe knows
    ├── CaseError                one case is wrong; the others go on
    │   ├── UnreadableFileError  a file is missing, truncated, or not an image
    │   │   └── IrregularSeriesError  a DICOM series is not one regular volume
    │   ├── GeometryMismatchError  two files of a case lie on different grids
    │   └── NoRoomError          a case would not fit into the free memory
    ├── RecipeError              a recipe file is wrong
    ├── NetworkError             a network is not known, or cannot be built as asked
    ├── PlanError                no plan follows from this fingerprint
    ├── ArtefactError            an artefact is missing, damaged or stale
    ├── ModelError               a model file or folder cannot be used
    ├── DistillationError        a teacher, a student or a term of distillation does not fit
    ├── TrainingError            training cannot start or go on
    │   └── TrainingInterrupted  a signal asked training to stop; its state is saved
    ├── CrossvalError            a cross-validation cannot be designed, or continued, as asked
    ├── ClusterError             a cluster cannot be used
    ├── WorkerKilledError        the process of a job was killed
    ├── LockedError              another process works on the same fold
    └── DeviceError              the device asked for is not there

A message says where, what was found, what was expected and what to do next.
Anything else that is raised is a bug and keeps its traceback.
"""

from functools import partial


class SegpipeError(Exception):
    """Base of every error that segpipe raises on purpose."""

    exit_code = 1


class UsageError(SegpipeError):
    """Options do not go together, or one is missing."""

    exit_code = 2


class UnsavedError(SegpipeError):
    """A result was made and cannot be written; the command line shows it before it says so."""

    def __init__(self, message: str, result: object) -> None:
        super().__init__(message)
        self.result = result


class DatasetError(SegpipeError):
    """The dataset cannot be understood as a whole."""


class CaseError(SegpipeError):
    """One case cannot be processed; a batch reports it and goes on."""


class UnreadableFileError(CaseError):
    """A file is missing, truncated, or not an image segpipe can read."""


class IrregularSeriesError(UnreadableFileError):
    """A DICOM series is not one regular volume."""


class GeometryMismatchError(CaseError):
    """Two files of one case lie on different grids."""


class NoRoomError(CaseError):
    """A case would not fit into the free memory."""


class RecipeError(SegpipeError):
    """A recipe is missing or holds a wrong value."""


class NetworkError(SegpipeError):
    """A network is not known, or cannot be built as it was asked for."""


class PlanError(SegpipeError):
    """No plan, or no such configuration, follows from the fingerprint."""


class ArtefactError(SegpipeError):
    """An artefact is missing, damaged, or made from other inputs."""


class ModelError(SegpipeError):
    """A model file or folder cannot be used."""


class DistillationError(SegpipeError):
    """A teacher, a student or a term of distillation does not fit the others."""


class TrainingError(SegpipeError):
    """Training cannot start or cannot go on."""


class TrainingInterrupted(TrainingError):  # noqa: N818 - it reports an event, not a fault
    """A signal asked training to stop; its state has been saved."""

    def __init__(self, message: str, *, signal_number: int) -> None:
        super().__init__(message)
        self.signal_number = signal_number
        self.exit_code = 128 + signal_number

    def __reduce__(self) -> tuple[object, ...]:
        # Exceptions are pickled by their positional arguments alone.
        return partial(type(self), signal_number=self.signal_number), self.args


class CrossvalError(SegpipeError):
    """A cross-validation cannot be designed, or cannot be continued, as it was asked for."""


class ClusterError(SegpipeError):
    """The workers of a cluster cannot be used."""


class WorkerKilledError(SegpipeError):
    """The process that did a job was killed, most often because memory ran out."""


class LockedError(SegpipeError):
    """Another process works in the same place."""


class DeviceError(SegpipeError):
    """The device that was asked for is not available."""
