"""Trained models: applied, cleaned up after, taken from and given to other programs. Behind the command line, as `segpipe.commands` is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segpipe.errors import ClusterError, ModelError, SegpipeError, WorkerKilledError
from segpipe.steps import SILENT, PathLike
from segpipe.watch import Watch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from segpipe.inference.engine import EngineName, Precision
    from segpipe.inference.inputs import InputCase
    from segpipe.inference.manifest import Manifest
    from segpipe.inference.schema import PredictionRow
    from segpipe.labels import Labels
    from segpipe.postprocessing.schema import PostprocessingRules

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
    from segpipe.inference.engine import network_cache
    from segpipe.inference.inputs import find_inputs
    from segpipe.inference.predictor import Options, Predictor
    from segpipe.inference.run import Save, shard_of
    from segpipe.inference.run import predict as stage
    from segpipe.io.formats import ending_of
    from segpipe.runtime import choose_runtime

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

    from segpipe.inference.inputs import find_inputs
    from segpipe.inference.manifest import Manifest
    from segpipe.inference.predictor import plan_of, read_any_model
    from segpipe.inference.run import shard_of
    from segpipe.io.formats import ending_of
    from segpipe.jobs import open_executor

    if ending_of(output):
        raise SegpipeError(f"{output}: --cluster shares out a folder of images; give a folder for the segmentations")
    paths = [Path(m).resolve() for m in ((model,) if isinstance(model, (str, Path)) else model)]
    plan = plan_of(read_any_model(paths[0], how["folds"]), paths[0])
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


def import_model(
    folder: PathLike, output: PathLike, *, folds: tuple[str, ...] = (), checkpoint: str = "checkpoint_final.pth"
) -> dict[str, str]:
    """Write nnU-Net's folder of a trained model as a segpipe model; returns what it is, in words.

    Parameters
    ----------
    folder : path
        ``<Trainer>__<Plans>__<configuration>``; of a cascade the first stage's folder lies beside it.
    output : path
        The .segpipe file.
    folds : tuple of str
        Folds to take; empty for all.
    checkpoint : str
        Name of the checkpoints.
    """
    from segpipe.interop.nnunet.folder import read_model_folder
    from segpipe.planning.schema import Plan

    target = Path(output)
    if target.suffix != ".segpipe":
        raise SegpipeError(f"{target}: a model file ends in .segpipe; give such a name")
    model = read_model_folder(Path(folder), folds=folds, checkpoint=checkpoint)
    model.write(target)
    plan = Plan.model_validate_json(model.plan_json)
    configuration = plan.configuration(model.configuration)
    return {
        "model": str(target),
        "configuration": model.configuration,
        "network": f"{configuration.network.architecture}, {len(configuration.network.features)} stages",
        "patch": "x".join(map(str, configuration.patch_size)),
        "spacing": " x ".join(f"{s:.4g}" for s in configuration.spacing_mm) + " mm",
        "channels": ", ".join(plan.channel_names),
        "labels": plan.labels.describe(),
        "folds": ", ".join(model.folds),
        "mirror axes": ", ".join(map(str, model.mirror_axes)) or "none",
        "first stage": "none" if model.previous is None else model.previous.configuration,
    }


def export_model(model: PathLike, output: PathLike, *, form: str = "nnunet", ending: str = ".nii.gz") -> dict[str, str]:
    """Write a model so that another program predicts with it; returns what was written, in words.

    Parameters
    ----------
    model : path
        A model.segpipe file, or the folder that holds one.
    output : path
        New folder.
    form : "nnunet"
    ending : str
        Of the images that it will be given.
    """
    from segpipe.interop.nnunet.folder import write_model_folder
    from segpipe.modelfile import read_model
    from segpipe.planning.schema import Plan

    if form != "nnunet":
        raise ModelError(f"--format {form}: models are written for nnunet")
    held = read_model(Path(model))
    folder = write_model_folder(held, Path(output), ending)
    labels = Plan.model_validate_json(held.plan_json).labels
    numbers = {value: number for number, value in enumerate(labels.values)}
    renumbered = ", ".join(f"{value} becomes {number}" for value, number in numbers.items() if value != number)
    folds = " ".join(held.folds)
    return {
        "folder": str(folder),
        "labels": renumbered or "as they are",
        "left out": "post-processing, which nnU-Net keeps apart" if held.postprocessing_json else "nothing",
        "predict with": f"nnUNetv2_predict_from_modelfolder -i IMAGES -o OUTPUT -m {folder} -f {folds}",
    }


def choose_postprocessing(
    predictions: PathLike,
    references: PathLike,
    *,
    rules: PathLike | None = None,
    model: PathLike | None = None,
    jobs: int | None = None,
    watch: Watch = SILENT,
) -> tuple[PostprocessingRules, dict[str, str]]:
    """Choose rules on predictions of cases that the model did not see; returns them, and the cases that failed with the reasons.

    Parameters
    ----------
    predictions, references : path
        Folders with files of the same names.
    rules : path, optional
        JSON file to write them to.
    model : path, optional
        Model to store them in; its labels are meant. Without one, every value but 0 is a label.
    jobs : int, optional
        Most worker processes.
    watch : Watch
        Told of progress.
    """
    from segpipe.evaluation.run import labels_found, match_pairs
    from segpipe.modelfile import model_in, read_model
    from segpipe.postprocessing.choose import choose_rules

    if rules is None and model is None:
        raise SegpipeError("give --rules FILE to write the chosen rules to, or --model to store them in")
    pairs, missing = match_pairs(Path(predictions), Path(references))
    labels = labels_found(pairs, jobs) if model is None else _labels_of(Path(model))
    with watch.counting("choosing post-processing", None) as step:
        chosen, failed = choose_rules(pairs, labels, chosen_on=str(predictions), jobs_limit=jobs, on_pass=step)
    if missing:
        watch.note(f"{len(missing)} reference(s) have no prediction of their name and are not used")
    if rules is not None:
        chosen.write(Path(rules))
    if model is not None:
        replace(read_model(Path(model)), postprocessing_json=chosen.to_json()).write(model_in(Path(model)))
    return chosen, failed


def apply_postprocessing(
    predictions: PathLike,
    output: PathLike,
    *,
    rules: PathLike | None = None,
    model: PathLike | None = None,
    jobs: int | None = None,
    watch: Watch = SILENT,
) -> tuple[dict[str, int], dict[str, str]]:
    """Apply rules to every segmentation of a folder; returns the changed voxels of each, and those that failed with the reasons.

    Parameters
    ----------
    predictions : path
        Folder of segmentations, of any program.
    output : path
        Another folder.
    rules : path, optional
        JSON file; the model's own rules unless given.
    model : path, optional
        Whose labels are meant. Without one, every value that is found is a label, named by its number as ``label_3``.
    jobs : int, optional
        Most worker processes.
    watch : Watch
        Told of progress.
    """
    from segpipe.modelfile import read_model
    from segpipe.postprocessing.run import apply_to_folder
    from segpipe.postprocessing.schema import PostprocessingRules

    if rules is not None:
        read = PostprocessingRules.read(Path(rules))
    elif model is not None:
        held = read_model(Path(model)).postprocessing_json
        if not held:
            raise ModelError(f"{model}: holds no post-processing; choose some with --references first, or give --rules")
        read = PostprocessingRules.model_validate_json(held)
    else:
        raise SegpipeError("give --rules FILE, or --model with a model that holds rules")
    labels = None if model is None else _labels_of(Path(model))
    with watch.counting("post-processing", None) as step:
        return apply_to_folder(Path(predictions), Path(output), read.rules, labels, jobs_limit=jobs, on_case=step)


def _labels_of(model: Path) -> Labels:
    from segpipe.modelfile import read_model
    from segpipe.planning.schema import Plan

    return Plan.model_validate_json(read_model(model).plan_json).labels
