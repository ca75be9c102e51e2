"""The stage: images in, segmentations on their own grids out. One bad case never stops the rest."""

import logging
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segpipe.dataset.check import image_problems
from segpipe.dataset.load import LoadedImage, load_image
from segpipe.dataset.schema import FileStamp
from segpipe.errors import CaseError, SegpipeError
from segpipe.fingerprint.measure import image_percentiles
from segpipe.inference.inputs import InputCase
from segpipe.inference.predictor import Predictor
from segpipe.inference.schema import PredictionRow
from segpipe.io.formats import write_labels_like
from segpipe.planning.guard import doubts

logger = logging.getLogger(__name__)


def predict(
    cases: list[InputCase],
    predictor: Predictor,
    log: Path,
    *,
    resume: bool = False,
    on_case: Callable[[PredictionRow], None] = lambda _: None,
) -> list[PredictionRow]:
    """Predict every case and write a row for each to a log.

    Parameters
    ----------
    cases : list of InputCase
    predictor : Predictor
        The loaded model.
    log : Path
        JSON lines, appended to.
    resume : bool
        Skip cases whose output is there, made by the same model from the same files.
    on_case : callable
        Told the row of each case.

    Returns
    -------
    list of PredictionRow
        One a case, in order; failed ones with their reason.

    Raises
    ------
    SegpipeError
        If an output is there that prediction did not write.
    """
    written = _known(log)
    _require_own_outputs(cases, written)
    known = written if resume else {}
    log.parent.mkdir(parents=True, exist_ok=True)
    rows = []
    for case in cases:
        row = known.get(case.id)
        if row is None or not _still_holds(row, case, predictor):
            row = _predict_case(case, predictor)
            with log.open("a") as file:
                file.write(row.model_dump_json() + "\n")
        rows.append(row)
        on_case(row)
    return rows


def _predict_case(case: InputCase, predictor: Predictor) -> PredictionRow:
    start = time.perf_counter()
    if case.problem:
        return _failed(case, predictor, case.problem)
    try:
        image = load_image(
            case.id,
            list(case.images),
            predictor.plan.channel_names,
            predictor.plan.orientation,
            resample_channels=predictor.plan.resample_channels,
        )
        problems = image_problems(image.volume.array)
        if problems:
            raise CaseError("; ".join(f"{rule}: {message}" for rule, message in problems))
        percentiles = image_percentiles(image.volume.array)
        labels = predictor.predict(image.volume)
        write_labels_like(case.images[0], case.output, image.to_stored(labels))
    except CaseError as error:
        return _failed(case, predictor, str(error))
    except Exception as error:
        logger.exception("case %s", case.id)
        return _failed(case, predictor, f"unexpected {type(error).__name__}: {error}")
    return PredictionRow(
        case=case.id,
        status="done",
        output=case.output,
        images=tuple(FileStamp.of(i) for i in case.images),
        model=predictor.digest,
        elapsed_s=round(time.perf_counter() - start, 3),
        volumes_ml=_volumes(labels, image, predictor),
        doubts=doubts(percentiles, predictor.plan.guard, predictor.plan.channel_names),
    )


def _failed(case: InputCase, predictor: Predictor, reason: str) -> PredictionRow:
    return PredictionRow(case=case.id, status="failed", output=case.output, reason=reason, model=predictor.digest)


def _volumes(labels: NDArray[np.unsignedinteger], image: LoadedImage, predictor: Predictor) -> dict[str, float]:
    voxel_ml = image.volume.grid.voxel_volume_mm3 / 1000
    targets = predictor.plan.labels.targets
    return {t.name: round(float(np.isin(labels, t.values).sum() * voxel_ml), 4) for t in targets}


def _require_own_outputs(cases: list[InputCase], written: dict[str, PredictionRow]) -> None:
    """Refuse to overwrite a file that prediction did not write, such as a reference."""
    own = {row.output.resolve() for row in written.values()}
    foreign = [c.output for c in cases if c.output.exists() and c.output.resolve() not in own]
    if foreign:
        raise SegpipeError(
            f"{foreign[0]}: is there already and was not written by segpipe predict ({len(foreign)} such file(s)); "
            "choose another output folder"
        )


def _known(log: Path) -> dict[str, PredictionRow]:
    """Latest row of each case; a line cut off by a crash is passed over, its case is predicted again."""
    rows: dict[str, PredictionRow] = {}
    for line in log.read_text().splitlines() if log.is_file() else []:
        try:
            row = PredictionRow.model_validate_json(line)
        except ValueError:
            continue
        rows[row.case] = row
    return rows


def _still_holds(row: PredictionRow, case: InputCase, predictor: Predictor) -> bool:
    if row.status != "done" or row.model != predictor.digest or row.output != case.output or not case.output.is_file():
        return False
    return all(i.exists() for i in case.images) and row.images == tuple(FileStamp.of(i) for i in case.images)
