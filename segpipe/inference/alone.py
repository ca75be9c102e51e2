"""A case that killed the process before: tried once more, last, in a process of its own, so that it costs nobody else.

A claim is written before a case begins (:mod:`segpipe.inference.manifest`). It stays where the process is killed, and so is remembered.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from segpipe.errors import WorkerKilledError
from segpipe.execution.processes import in_own_process
from segpipe.inference.inputs import InputCase
from segpipe.inference.manifest import Manifest
from segpipe.inference.schema import PredictionRow

if TYPE_CHECKING:
    from segpipe.inference.predictor import Predictor

KILLED = "killed: "
"""How the reason of a case begins whose process was killed."""
Again = Callable[["Predictor", InputCase], PredictionRow]


def killed_before(manifest: Manifest, known: PredictionRow | None, case: InputCase) -> bool:
    """Whether a process was killed while it worked on a case, in an earlier run of any kind."""
    if manifest.was_killed(case.output):
        return True
    return known is not None and known.status == "failed" and (known.reason or "").startswith(KILLED)


def predict_alone(case: InputCase, predictor: Predictor, manifest: Manifest, again: Again) -> PredictionRow:
    """Predict a case in a new process, which loads the model again; where that is killed too, its row says so.

    Parameters
    ----------
    case : InputCase
    predictor : Predictor
    manifest : Manifest
    again : callable
        Predicts the case with a predictor and writes its row; must be picklable.

    Returns
    -------
    PredictionRow
        The case's row, which is in the manifest by then.
    """
    if predictor.source is None:
        return again(predictor, case)
    try:
        return in_own_process(_loaded_and_predicted, predictor.source, again, case)
    except WorkerKilledError as error:
        row = _killed(case, predictor, str(error))
    claim = manifest.claim(case.output, wait=True)
    manifest.append(row)
    if claim is not None:
        manifest.release(claim)
    return row


def _loaded_and_predicted(
    source: tuple[tuple[Path, ...], object, object], again: Again, case: InputCase
) -> PredictionRow:
    from segpipe.inference.predictor import Predictor

    return again(Predictor.load(*source), case)  # type: ignore[arg-type]


def _killed(case: InputCase, predictor: Predictor, how: str) -> PredictionRow:
    reason = (
        f"{KILLED}an earlier run was killed at this case or beside it; tried alone, {how}. Use a machine with more memory, or look at its "
        "files"
    )
    return PredictionRow(case=case.id, status="failed", output=case.output, reason=reason, model=predictor.digest)
