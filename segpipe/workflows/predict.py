"""`segpipe predict`: segment images with trained models."""

from __future__ import annotations

from concurrent.futures import Future, as_completed
from dataclasses import replace

import torch

from segpipe.core.progress import SILENT, Watch
from segpipe.core.whole import is_full
from segpipe.core.writable import require_writable
from segpipe.errors import ClusterError, SegpipeError, UsageError, WorkerKilledError
from segpipe.execution.device import choose_runtime
from segpipe.execution.processes import open_executor
from segpipe.execution.torch_state import fastest_convolutions
from segpipe.inference.engines.choose import network_cache
from segpipe.inference.inputs import InputCase, find_inputs
from segpipe.inference.manifest import Manifest
from segpipe.inference.outputs import Save
from segpipe.inference.predictor import Predictor, PredictorOptions
from segpipe.inference.run import predict as stage
from segpipe.inference.run import shard_of
from segpipe.inference.schema import PredictionRow
from segpipe.io.formats import ending_of
from segpipe.models.read import read_any_model
from segpipe.workflows.checked import require_device, require_models
from segpipe.workflows.options import PredictOptions
from segpipe.workflows.page import FAILED_CASES, Page, failures, plain

_PARTS_A_WORKER = 3
"""Parts of a batch that each worker of a cluster gets."""


def predict(options: PredictOptions, watch: Watch = SILENT) -> list[PredictionRow]:
    """Segment images; each result lies on its image's own grid, with its header. A bad case is reported and passed over.

    Writes predictions.jsonl and predictions.csv beside the segmentations.
    """
    o, target = options, options.output
    require_models(o.model, "--model")
    require_writable(target.parent if ending_of(target) else target, "OUTPUT")
    if o.cluster is not None:
        return _predict_elsewhere(o, watch)
    if o.jobs is not None:
        watch.note(f"--jobs {o.jobs} was not followed: it is a number of workers for --cluster slurm")
    require_device(o.device)
    how = PredictorOptions(o.folds, o.tta, o.step, o.engine, o.precision, o.postprocess, cache=network_cache())
    predictor = Predictor.load(o.model, choose_runtime(o.device), how)
    watch.note(f"{predictor.describe}, {'with' if o.tta else 'without'} mirrored images")
    cases = find_inputs(
        o.source, target, len(predictor.plan.channel_names), digits=predictor.plan.digits, note=watch.note
    )
    if o.shard != (1, 1):
        cases = shard_of(cases, *o.shard)
        watch.note(f"part {o.shard[0]} of {o.shard[1]}: {len(cases)} case(s)")
    log = (target.parent if ending_of(target) else target) / "predictions.jsonl"
    save = Save(o.save_probabilities, o.save_uncertainty)
    with watch.counting("predicting", len(cases)) as done:
        return stage(
            cases, predictor, log, resume=o.resume, overwrite=o.overwrite, save=save,
            on_case=lambda row: done(row.case), note=watch.note,
        )  # fmt: skip


def _predict_part(options: PredictOptions) -> list[PredictionRow]:
    """Predict a part of the cases on a worker of a cluster, as the command does in its own process."""
    with fastest_convolutions():
        return predict(options)


def own_process() -> None:
    """Let cuDNN measure its convolutions: the process is the command's own. Called from Python, prediction sets nothing."""
    torch.backends.cudnn.benchmark = True


def _predict_elsewhere(options: PredictOptions, watch: Watch) -> list[PredictionRow]:
    """Predict on a cluster: each worker loads the model once and takes its part of the cases."""
    if options.shard != (1, 1):
        raise UsageError("--shard with --cluster: the cluster's workers share the cases already; give one of them")
    if ending_of(options.output):
        raise UsageError(
            f"{options.output}: --cluster shares out a folder of images; give a folder for the segmentations"
        )
    first = options.model[0]
    plan = read_any_model(first, options.folds).plan
    cases = find_inputs(options.source, options.output, len(plan.channel_names), digits=plan.digits, note=watch.note)
    manifest = Manifest(options.output / "predictions.jsonl")
    if not options.resume:
        # Each part resumes, since a worker that is lost is replaced by another: what is there from before must not count.
        known = manifest.rows()
        for row in (known[c.output.name] for c in cases if c.output.name in known):
            manifest.append(row.model_copy(update={"status": "failed", "reason": "to be predicted again"}))
    assert options.cluster is not None
    n_workers = options.jobs or 1
    with open_executor(options.cluster, n_workers) as executor, watch.counting("predicting", len(cases)) as done:
        # A few parts a worker: they take different times, and workers may come and go.
        n_parts = min(_PARTS_A_WORKER * max(executor.capacity(), n_workers), len(cases))
        watch.note(f"{len(cases)} case(s) in {n_parts} part(s) on {options.cluster}")
        rows: dict[str, PredictionRow] = {}
        parts = {
            executor.submit(
                _predict_part, replace(options.resolved(), shard=(k, n_parts), cluster=None, resume=True)
            ): k
            for k in range(1, n_parts + 1)
        }
        for part in as_completed(parts):
            for row in _rows_of(part, shard_of(cases, parts[part], n_parts), manifest):
                rows[row.output.name] = row
                done(row.case)
    manifest.write_table()
    return [rows[c.output.name] for c in cases]


def _rows_of(part: Future[list[PredictionRow]], cases: list[InputCase], manifest: Manifest) -> list[PredictionRow]:
    """Return the rows of a part; where its workers were lost, what they had done, and the others as failed.

    Raises
    ------
    SegpipeError
        If the whole batch cannot go on.
    """
    try:
        return part.result()
    except ClusterError as error:
        manifest.write_table()
        raise ClusterError(f"{error}, with --resume") from error
    except Exception as error:
        if is_full(error) or (isinstance(error, SegpipeError) and not isinstance(error, WorkerKilledError)):
            raise
        why = f"not predicted ({type(error).__name__}: {error}); run the same command with --resume"
    known = manifest.rows()
    return [
        known[c.output.name]
        if c.output.name in known and known[c.output.name].status == "done"
        else PredictionRow(case=c.id, status="failed", output=c.output, reason=why, model="")
        for c in cases
    ]


def page(rows: list[PredictionRow], options: PredictOptions) -> Page:
    """Show how many cases were predicted, and which failed or are doubtful."""
    failed = {row.case: row.reason or "" for row in rows if row.status == "failed"}
    doubtful = {row.case: "; ".join(row.doubts) for row in rows if row.doubts}
    done = f"{len(rows) - len(failed)} of {len(rows)} case(s) predicted, in {options.output}"
    lost = [*failures("Cases that failed", failed), *failures("Cases to look at", doubtful)]
    return Page([plain(row) for row in rows], [done, *lost], exit_code=FAILED_CASES if failed else 0)
