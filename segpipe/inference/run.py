"""The stage: images in, segmentations on their own grids out. One bad case never stops the rest.

Reading, computing and writing overlap, each in a thread of its own: nothing is handed between processes, and none can die unnoticed.
"""

import logging
import time
from collections.abc import Callable, Collection
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from filelock import FileLock

from segpipe.dataset.check import image_problems
from segpipe.dataset.fingerprint.measure import image_percentiles
from segpipe.dataset.load import LoadedImage, load_image
from segpipe.dataset.room import require_room_to_read
from segpipe.dataset.schema import FileStamp
from segpipe.errors import CaseError, SegpipeError
from segpipe.execution.memory import PeakMemory
from segpipe.inference.alone import killed_before, predict_alone
from segpipe.inference.inputs import InputCase
from segpipe.inference.job import Job
from segpipe.inference.manifest import Manifest, still_holds
from segpipe.inference.outputs import Extras, Save, beside, left_by_killed
from segpipe.inference.predictor import Predictor, Sink
from segpipe.inference.quality import quality_of, volumes_ml, voxels_of
from segpipe.inference.schema import PredictionRow
from segpipe.io.formats import content_of, header_warnings, labels_written_like
from segpipe.planning.guard import doubts
from segpipe.planning.usual import unusual_spacing, unusual_volumes
from segpipe.preprocessing.prepare import Placement
from segpipe.version import __version__

logger = logging.getLogger(__name__)

Onlooker = Callable[[str, LoadedImage], Sink | None]


def predict(
    cases: list[InputCase],
    predictor: Predictor,
    log: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    save: Save | None = None,
    on_case: Callable[[PredictionRow], None] = lambda _: None,
    onlooker: Onlooker | None = None,
    note: Callable[[str], None] = lambda _: None,
) -> list[PredictionRow]:
    """Predict every case and write a row for each to a log, and a table of the rows beside it.

    Parameters
    ----------
    cases : list of InputCase
    predictor : Predictor
        The loaded model.
    log : Path
        JSON lines, appended to; other processes may work with the same one, and no case is computed twice.
    resume : bool
        Skip cases whose output is there and whole, made by the same model from the same content.
    overwrite : bool
        Replace also what was changed after prediction wrote it; otherwise such a file stays, and its case fails.
    save : Save, optional
        What else is written.
    on_case : callable
        Called with the row of each case.
    onlooker : callable, optional
        Given each case's id and image, returns what is to be shown its probabilities, or None. Must be picklable.
    note : callable, optional
        Receives what is to be known before a case begins.

    Returns
    -------
    list of PredictionRow
        One a case, in order; failed ones with their reason.

    Raises
    ------
    SegpipeError
        If an output is there that prediction never wrote.
    OSError
        If the disk is full.
    """
    manifest, how = Manifest(log), _How(log, resume, overwrite, save or Save(), onlooker)
    before = manifest.rows()
    apart = [c for c in cases if killed_before(manifest, before.get(c.output.name), c)]
    batch = _Batch(predictor, manifest, how, on_case, note)
    rows = batch.predict(cases, apart)
    for case in apart:
        if case.output.name not in rows:
            note(
                f"{case.id}: an earlier run was killed at this case or beside it; it is tried once more, in a process of its own"
            )
            rows[case.output.name] = predict_alone(case, predictor, manifest, how)
            on_case(rows[case.output.name])
    manifest.write_table()
    return [rows[c.output.name] for c in cases]


def shard_of(cases: list[InputCase], number: int, n_shards: int) -> list[InputCase]:
    """Every ``n_shards``-th case from the ``number``-th on, counted from 1."""
    return sorted(cases, key=lambda c: c.id)[number - 1 :: n_shards]


@dataclass(frozen=True)
class _How:
    """How cases are predicted; picklable, and called for a case that is predicted alone."""

    log: Path
    resume: bool
    overwrite: bool
    save: Save
    onlooker: Onlooker | None

    def __call__(self, predictor: Predictor, case: InputCase) -> PredictionRow:
        return _Batch(predictor, Manifest(self.log), self, lambda _: None, lambda _: None).predict([case])[
            case.output.name
        ]


class _Batch:
    def __init__(
        self,
        predictor: Predictor,
        manifest: Manifest,
        how: _How,
        on_case: Callable[[PredictionRow], None],
        note: Callable[[str], None],
    ) -> None:
        self.predictor, self.manifest, self.on_case, self.note = predictor, manifest, on_case, note
        self.how, self.save, self.onlooker, self.resume = how, how.save, how.onlooker, how.resume
        self.rows: dict[str, PredictionRow] = {}
        self.before: dict[str, PredictionRow] = {}
        self.leftovers: dict[str, list[Path]] = {}
        self.held: dict[str, FileLock] = {}
        self.inherited: set[Path] = set()

    def predict(self, cases: list[InputCase], apart: Collection[InputCase] = ()) -> dict[str, PredictionRow]:
        """Predict cases, those that are predicted apart aside; returns the rows by the outputs' names."""
        self.before = self.manifest.rows()
        self._require_own_outputs(cases)
        self.leftovers = left_by_killed(cases)
        cases = [c for c in cases if c not in apart or self._is_known(c)]
        try:
            with (
                ThreadPoolExecutor(1, "read") as reader,
                ThreadPoolExecutor(1, "write") as writer,
            ):
                try:
                    self._pass(cases, reader, writer, wait=False)
                    # What another process was computing meanwhile: it is done by now, or is done here.
                    self._pass([c for c in cases if c.output.name not in self.rows], reader, writer, wait=True)
                except BaseException:
                    reader.shutdown(wait=False, cancel_futures=True)
                    raise
        finally:
            # Where work was stopped, and nothing was killed, nobody has to be careful with these cases later.
            for claim in list(self.held.values()):
                self._release(claim)
        return self.rows

    def _is_known(self, case: InputCase) -> bool:
        """Whether the log holds all there is to say of a case."""
        known = self.before.get(case.output.name)
        return known is not None and self._stands(known, case)

    def _release(self, claim: FileLock) -> None:
        self.held.pop(claim.lock_file, None)
        self.manifest.release(claim)

    def _require_own_outputs(self, cases: list[InputCase]) -> None:
        """Refuse to overwrite a file that prediction did not write, such as a reference, or one output by another."""
        wanted = [(c, file) for c in cases for file in (c.output, *self.save.files(c.output))]
        unknown = {
            f: self.manifest.is_claimed(c.output) for c, f in wanted if f.exists() and not self.manifest.is_own(f)
        }
        # An older version wrote a mask before its row: the claim that a killed process left says whose it is.
        self.inherited = {f for f, claimed in unknown.items() if claimed}
        foreign = [f for f, claimed in unknown.items() if not claimed]
        # Where a row is damaged, a file may be its: it is kept, and costs its own case.
        if foreign and not self.manifest.n_damaged:
            raise SegpipeError(
                f"{foreign[0]}: is there already and was not written by segpipe predict ({len(foreign)} such file(s)); "
                "choose another output folder"
            )
        names = [file.name for _, file in wanted]
        twice = next((name for name in names if names.count(name) > 1), None) if len(set(names)) < len(names) else None
        if twice is not None:
            raise SegpipeError(f"{twice}: two cases would write this file; give them other names")

    def _pass(
        self, cases: list[InputCase], reader: ThreadPoolExecutor, writer: ThreadPoolExecutor, *, wait: bool
    ) -> None:
        """Take cases through the stage: while one is computed, the next is read and the one before is written."""
        upcoming = [reader.submit(self._read, case, wait=wait) for case in cases[:1]]
        writing: Future[PredictionRow] | None = None
        for number in range(len(cases)):
            job = upcoming.pop().result()
            tight = isinstance(job, Job) and job.waits
            if number + 1 < len(cases) and not tight:
                upcoming.append(reader.submit(self._read, cases[number + 1], wait=wait))
            if isinstance(job, PredictionRow):
                self._keep(job)
            if not isinstance(job, Job):
                continue
            if not tight:
                job.attempt(self._compute)
            if job.waits:
                self._written(writing)
                writing = None
                job.attempt(self._load).attempt(self._compute)
            if number + 1 < len(cases) and tight:
                upcoming.append(reader.submit(self._read, cases[number + 1], wait=wait))
            self._written(writing)
            writing = writer.submit(self._finish, job)
        self._written(writing)

    def _written(self, writing: "Future[PredictionRow] | None") -> None:
        if writing is not None:
            self._keep(writing.result())

    def _keep(self, row: PredictionRow) -> None:
        self.rows[row.output.name] = row
        self.on_case(row)

    def _read(self, case: InputCase, *, wait: bool) -> Job | PredictionRow | None:
        """Claim a case and read it; its row if it is done already, None if another process has it."""
        claim = self.manifest.claim(case.output, wait=wait)
        if claim is None:
            return None
        self.held[claim.lock_file] = claim
        known = self.manifest.rows().get(case.output.name)
        if known is not None and self._stands(known, case):
            self._release(claim)
            # As it is called and where it lies now.
            return known.model_copy(update={"case": case.id, "output": case.output})
        for name in (case.output.name, *beside(case.output)):
            # The case is ours alone: what a killed process left of it is nobody's.
            for partial in self.leftovers.get(name, []):
                partial.unlink(missing_ok=True)
        job = Job(case, claim)
        if case.problem:
            job.failure = case.problem
        return job.attempt(self._require_unchanged).attempt(self._load)

    def _require_unchanged(self, job: Job) -> None:
        """Refuse to replace what was changed after prediction wrote it, such as a mask that somebody corrected."""
        output = job.case.output
        for file in (output, *self.save.files(output)):
            own = self.how.overwrite or file in self.inherited or self.manifest.is_unchanged(file)
            if not own:
                if not self.manifest.is_own(file):
                    raise CaseError(
                        f"{file}: is there already, and the log does not say who wrote it ({self.manifest.n_damaged} of its lines are "
                        "damaged); it is kept: move it away, or give --overwrite"
                    )
                raise CaseError(
                    f"{file}: was changed after segpipe predict wrote it, and is kept; to have it predicted again, move it away or give "
                    "--overwrite"
                )

    def _stands(self, known: PredictionRow, case: InputCase) -> bool:
        """Whether a row of the log says all there is to say of a case."""
        # One that was not there at the start is another process's, of this same batch: what failed there fails here.
        new = known != self.before.get(case.output.name)
        if new and (known.status, known.model) == ("failed", self.predictor.digest):
            return True
        return (self.resume or new) and self._is_done(known, case)

    def _is_done(self, known: PredictionRow, case: InputCase) -> bool:
        with suppress(CaseError, OSError):
            return still_holds(known, case, self.predictor.digest, self.save.files(case.output))
        return False

    def _load(self, job: Job) -> None:
        start, case, plan = time.perf_counter(), job.case, self.predictor.plan
        require_room_to_read(case.images)
        job.image = load_image(
            case.id, list(case.images), plan.channel_names, plan.orientation,
            resample_channels=plan.resample_channels, advice="the model takes channels on one grid",
        )  # fmt: skip
        problems = image_problems(job.image.volume.array)
        if problems:
            raise CaseError("; ".join(f"{rule}: {message}" for rule, message in problems))
        job.stamps, job.content = tuple(FileStamp.of(i) for i in case.images), content_of(case.images)
        job.percentiles = image_percentiles(job.image.volume.array)
        job.header_doubts = header_warnings(case.images)
        job.seconds["read"] = time.perf_counter() - start
        start = time.perf_counter()
        job.remarks = self.predictor.remarks(job.image.volume)
        for remark in job.remarks:
            self.note(f"{case.id}: {remark}")
        job.prepared = self.predictor.prepare(job.image.volume)
        job.seconds["prepare"] = time.perf_counter() - start

    def _compute(self, job: Job) -> None:
        assert job.image is not None
        if self.save.files(job.case.output):
            job.extras = Extras(
                job.image,
                self.predictor.plan,
                job.case.output,
                probabilities=self.save.probabilities,
                uncertainty=self.save.uncertainty,
            )
        sinks: list[Sink] = [] if job.extras is None else [job.extras.add]
        watching = None if self.onlooker is None else self.onlooker(job.case.id, job.image)
        if watching is not None:
            sinks.append(watching)
        sink = _to_all(sinks)
        with PeakMemory() as memory:
            job.prediction = self.predictor.segment(job.image.volume, job.prepared, sink)
        job.peak_gb = memory.gb
        job.prepared = ()

    def _finish(self, job: Job) -> PredictionRow:
        """Write what was made of a case and its row, also where there is only a reason; then the case is free again."""
        row: PredictionRow | None = None

        def write(job: Job) -> None:
            nonlocal row
            row = self._write(job)

        try:
            job.attempt(write)
            if row is None:
                row = self._row(job, status="failed")
                self.manifest.append(row)
        finally:
            if job.extras is not None:
                job.extras.discard()
            self._release(job.claim)
        return row

    def _write(self, job: Job) -> PredictionRow:
        assert job.image is not None
        assert job.prediction is not None
        start, case, plan = time.perf_counter(), job.case, self.predictor.plan
        volume, prediction = job.image.volume, job.prediction
        grid, measured = volume.grid, prediction.measured.seconds
        voxels = voxels_of(prediction.labels, plan.labels)
        quality = quality_of(prediction, volume, job.percentiles, voxels, plan)
        found = job.header_doubts + job.remarks + doubts(job.percentiles, plan.guard, plan.channel_names)
        found += tuple(unusual_spacing(grid.spacing_mm, plan.usual).values())
        found += tuple(unusual_volumes(voxels, grid.shape, grid.spacing_mm, plan.usual).values())
        measured["quality"] = measured.get("quality", 0.0) + time.perf_counter() - start
        start = time.perf_counter()
        source, labels = case.images[0], job.image.to_stored(prediction.labels)
        with ExitStack() as places:
            further = {} if job.extras is None else places.enter_context(job.extras.written(source))
            mask = places.enter_context(labels_written_like(source, case.output, labels))
            digests = {place.name: content_of((file,)) for place, file in further.items()}
            job.seconds["write"] = time.perf_counter() - start
            self._require_unchanged(job)
            row = self._row(job, status="done").model_copy(
                update={
                    "output_sha256": content_of((mask,)),
                    "saved": tuple(further),
                    "saved_sha256": digests,
                    "seconds": _summed(job.seconds, measured),
                    "n_windows": prediction.measured.n_windows,
                    "volumes_ml": volumes_ml(voxels, grid.voxel_volume_mm3),
                    "quality": quality,
                    "doubts": found,
                }
            )
            # Before the files take their places: whoever is killed between leaves nothing that looks like somebody else's.
            self.manifest.append(row)
        return row

    def _row(self, job: Job, *, status: str) -> PredictionRow:
        return PredictionRow(
            case=job.case.id,
            status="done" if status == "done" else "failed",
            output=job.case.output,
            reason=job.failure,
            images=job.stamps,
            content=job.content,
            model=self.predictor.digest,
            software=f"segpipe {__version__}",
            engine=self.predictor.describe,
            elapsed_s=round(time.perf_counter() - job.start, 3),
            seconds=_summed(job.seconds, {}),
            peak_memory_gb=job.peak_gb,
        )


def _to_all(sinks: list[Sink]) -> Sink | None:
    def sink(placement: Placement, number: int, probabilities: torch.Tensor) -> None:
        for one in sinks:
            one(placement, number, probabilities)

    return sink if sinks else None


def _summed(first: dict[str, float], second: dict[str, float]) -> dict[str, float]:
    return {
        stage: round(first.get(stage, 0.0) + second.get(stage, 0.0), 3) for stage in dict.fromkeys((*first, *second))
    }
