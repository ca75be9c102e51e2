"""`segpipe predict`: segment images with trained models."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from segpipe.core.progress import SILENT, Watch
from segpipe.core.workspace import PathLike
from segpipe.errors import ClusterError, SegpipeError, WorkerKilledError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from segpipe.inference.engines.base import EngineName, Precision
    from segpipe.inference.inputs import InputCase
    from segpipe.inference.manifest import Manifest
    from segpipe.inference.schema import PredictionRow


_PARTS_A_WORKER = 3
"""Parts of a batch that each worker of a cluster gets."""


def predict(
    source: PathLike,
    output: PathLike,
    *,
    model: PathLike | Sequence[PathLike],
    folds: tuple[str, ...] = (),
    tta: bool = True,
    engine: EngineName = "auto",
    precision: Precision = "auto",
    step: float = 0.5,
    postprocess: bool = True,
    save_probabilities: bool = False,
    save_uncertainty: bool = False,
    shard: tuple[int, int] = (1, 1),
    device: str = "auto",
    cluster: str | None = None,
    jobs: int | None = None,
    resume: bool = False,
    watch: Watch = SILENT,
) -> list[PredictionRow]:
    """Segment images; each result lies on its image's own grid, with its header. A bad case is reported and passed over.

    Parameters
    ----------
    source : path
        An image, a folder of images, or a manifest.
    output : path
        Folder for the segmentations, predictions.jsonl and predictions.csv (or one file, for one image).
    model : path, or several
        A model.segpipe file, the folder that holds one, or nnU-Net's folder of a trained model; the probabilities of several are
        averaged.
    folds : tuple of str
        Folds to ensemble; empty for all that the model has.
    tta : bool
        Average over mirrored images.
    engine : "auto", "torch" or "openvino"
        What computes the network; ``auto`` is OpenVINO on a CPU where it is installed.
    precision : "auto", "float32", "float16" or "bfloat16"
    step : float
        Largest step of the sliding window, as a share of the patch.
    postprocess : bool
        Apply the model's post-processing.
    save_probabilities, save_uncertainty : bool
        Write them beside each segmentation.
    shard : tuple of int
        (i, n): only the i-th of n parts of the cases, so that n processes share a folder.
    device : str
        auto, cpu, cuda or cuda:N.
    cluster : str, optional
        Address of a Dask scheduler, or ``slurm``: its workers share the cases; all see the same files under the same paths.
    jobs : int, optional
        Workers to be asked of SLURM.
    resume : bool
        Skip cases that this model has done already.
    watch : Watch
        Told of progress.
    """
    if cluster is not None:
        if shard != (1, 1):
            raise SegpipeError(
                "--shard with --cluster: the cluster's workers share the cases already; give one of them"
            )
        how = {
            "folds": folds, "tta": tta, "engine": engine, "precision": precision, "step": step, "postprocess": postprocess,
            "save_probabilities": save_probabilities, "save_uncertainty": save_uncertainty, "device": device,
        }  # fmt: skip
        return _predict_elsewhere(
            Path(source), Path(output), model, how, cluster, jobs or 1, resume=resume, watch=watch
        )
    from segpipe.execution.device import choose_runtime
    from segpipe.inference.engines.choose import network_cache
    from segpipe.inference.inputs import find_inputs
    from segpipe.inference.predictor import Options, Predictor
    from segpipe.inference.run import Save, shard_of
    from segpipe.inference.run import predict as stage
    from segpipe.io.formats import ending_of

    target = Path(output)
    paths = (Path(model),) if isinstance(model, (str, Path)) else tuple(Path(m) for m in model)
    options = Options(folds, tta, step, engine, precision, postprocess, cache=network_cache())
    predictor = Predictor.load(paths, choose_runtime(device), options)
    watch.note(f"{predictor.describe}, {'with' if tta else 'without'} mirrored images")
    cases = find_inputs(Path(source), target, len(predictor.plan.channel_names))
    if shard != (1, 1):
        cases = shard_of(cases, *shard)
        watch.note(f"part {shard[0]} of {shard[1]}: {len(cases)} case(s)")
    log = (target.parent if ending_of(target) else target) / "predictions.jsonl"
    save = Save(save_probabilities, save_uncertainty)
    with watch.counting("predicting", len(cases)) as done:
        return stage(cases, predictor, log, resume=resume, save=save, on_case=lambda row: done(row.case))


def _predict_elsewhere(
    source: Path,
    output: Path,
    model: PathLike | Sequence[PathLike],
    how: dict[str, Any],
    cluster: str,
    n_workers: int,
    *,
    resume: bool,
    watch: Watch,
) -> list[PredictionRow]:
    """Predict on a cluster: each worker loads the model once and takes its part of the cases."""
    from concurrent.futures import as_completed

    from segpipe.execution.processes import open_executor
    from segpipe.inference.inputs import find_inputs
    from segpipe.inference.manifest import Manifest
    from segpipe.inference.run import shard_of
    from segpipe.io.formats import ending_of
    from segpipe.models.read import read_any_model

    if ending_of(output):
        raise SegpipeError(f"{output}: --cluster shares out a folder of images; give a folder for the segmentations")
    paths = [Path(m).resolve() for m in ((model,) if isinstance(model, (str, Path)) else model)]
    plan = read_any_model(paths[0], how["folds"]).plan
    cases = find_inputs(source, output, len(plan.channel_names))
    manifest = Manifest(output / "predictions.jsonl")
    if not resume:
        # Each part resumes, since a worker that is lost is replaced by another: what is there from before must not count.
        known = manifest.rows()
        for row in (known[c.output.name] for c in cases if c.output.name in known):
            manifest.append(row.model_copy(update={"status": "failed", "reason": "to be predicted again"}))
    rows: dict[str, PredictionRow] = {}
    with open_executor(cluster, n_workers) as executor, watch.counting("predicting", len(cases)) as done:
        # A few parts a worker: they take different times, and workers may come and go.
        n_parts = min(_PARTS_A_WORKER * max(executor.capacity(), n_workers), len(cases))
        watch.note(f"{len(cases)} case(s) in {n_parts} part(s) on {cluster}")
        parts = {
            executor.submit(
                predict, source.resolve(), output.resolve(), model=paths, shard=(k, n_parts), resume=True, **how
            ): k
            for k in range(1, n_parts + 1)
        }
        for part in as_completed(parts):
            try:
                found = part.result()
            except Exception as error:
                if isinstance(error, ClusterError):
                    manifest.write_table()
                    raise ClusterError(f"{error}, with --resume") from error
                if isinstance(error, SegpipeError) and not isinstance(error, WorkerKilledError):
                    raise
                found = _lost_part(shard_of(cases, parts[part], n_parts), manifest, error)
            for row in found:
                rows[row.output.name] = row
                done(row.case)
    manifest.write_table()
    return [rows[c.output.name] for c in cases]


def _lost_part(cases: list[InputCase], manifest: Manifest, error: Exception) -> list[PredictionRow]:
    """Rows of a part whose workers were lost: what they had done, and the others as failed."""
    from segpipe.inference.schema import PredictionRow

    known = manifest.rows()
    why = f"not predicted ({type(error).__name__}: {error}); run the same command with --resume"
    return [
        known[c.output.name]
        if c.output.name in known and known[c.output.name].status == "done"
        else PredictionRow(case=c.id, status="failed", output=c.output, reason=why, model="")
        for c in cases
    ]
