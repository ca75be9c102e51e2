"""Trained models held against each other on the held-out cases of a dataset. Behind the command line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

from segpipe.core.progress import SILENT, Watch
from segpipe.core.workspace import PathLike
from segpipe.errors import ModelError, SegpipeError
from segpipe.workflows.fold import doubt_of_folds
from segpipe.workflows.project import alone_in, fingerprint, splits_of, workspace_of

if TYPE_CHECKING:
    from segpipe.core.labels import Labels
    from segpipe.dataset.schema import Case
    from segpipe.evaluation.comparison import Comparison, ModelCosts, ModelScores
    from segpipe.evaluation.schema import Evaluation


def compare(
    models: Sequence[PathLike],
    *,
    dataset: PathLike,
    work: PathLike | None = None,
    fold: int | str = 0,
    folds: Mapping[Path, tuple[str, ...]] | None = None,
    output: PathLike | None = None,
    device: str = "auto",
    tta: bool = True,
    tolerance_mm: float = 1.0,
    threads: int | None = None,
    jobs: int | None = None,
    watch: Watch = SILENT,
) -> Comparison:
    """Measure models on the same cases: weights, work, time, memory, and scores with paired statistics.

    Writes comparison.json, comparison.md and comparison.png, and every prediction.

    Parameters
    ----------
    models : sequence of path
        Each a model.segpipe, the folder that holds one, or nnU-Net's folder of a trained model; the others are held against the first.
    dataset : path
        Folder or manifest.
    work : path, optional
        The workspace, whose splits are used.
    fold : int or "all"
        The cases that this fold held out, or all cases of the dataset (which no model may have seen).
    folds : mapping, optional
        Folds of some models; unless given, the one that held out the same cases where a model has it, else all.
    output : path, optional
        Folder; comparisons/fold_<fold> of the workspace unless given.
    device : str
        Where times are taken besides the CPU, if it is a GPU.
    tta : bool
        Average over mirrored images.
    tolerance_mm : float
        Of the normalised surface Dice.
    threads : int, optional
        Of the CPU; as many as torch takes unless given.
    jobs : int, optional
        Most worker processes in scoring.
    watch : Watch
        Told of progress.
    """
    import torch

    from segpipe.dataset.schema import Dataset
    from segpipe.evaluation.comparison import Comparison
    from segpipe.evaluation.run import evaluate
    from segpipe.execution.device import choose_runtime
    from segpipe.reporting.comparison import draw_comparison, markdown

    workspace = workspace_of(dataset, work)
    with alone_in(workspace, watch):
        measured = fingerprint(dataset, workspace, jobs=jobs, watch=watch)
    everything = Dataset.read(workspace.dataset)
    chosen = set(splits_of(workspace, measured).fold(fold).validation) if fold != "all" else None
    cases = [c for c in everything.cases if c.label and (chosen is None or c.id in chosen)]
    target = Path(output) if output is not None else workspace.root / "comparisons" / f"fold_{fold}"
    names = _names([Path(m) for m in models])
    threads = threads or torch.get_num_threads()
    devices = ["cpu"] if choose_runtime(device).device.type == "cpu" else ["cpu", device]
    costs: list[ModelCosts] = []
    evaluations: dict[str, Evaluation] = {}
    for path, name in zip([Path(m) for m in models], names, strict=True):
        used = (folds or {}).get(path) or _folds(path, fold)
        doubt = doubt_of_folds(path, used, fold, workspace)
        if doubt:
            watch.note(f"{name}: {doubt}")
        folder = target / "predictions" / name
        watch.note(f"{name}: predicting {len(cases)} case(s) on {' and '.join(devices)}")
        cost, scored, failed = _cost(name, path, used, cases, folder, devices, tta=tta, threads=threads)
        _as_dataset(path, scored, measured.labels)
        costs.append(cost)
        pairs = [(c.id, scored / _output(c), c.label.path) for c in cases if c.label and c.id not in failed]
        with watch.counting(f"scoring {name}", len(pairs)) as done:
            evaluations[name] = evaluate(
                pairs, measured.labels, missing=failed, tolerance_mm=tolerance_mm, jobs_limit=jobs, on_case=done
            )
    patients = dict(measured.groups)
    found = Comparison(
        dataset=everything.name,
        cases=tuple(c.id for c in cases),
        tta=tta,
        tolerance_mm=tolerance_mm,
        threads=threads,
        models=tuple(costs),
        scores={name: _scores(evaluation) for name, evaluation in evaluations.items()},
        **_statistics(costs, evaluations, patients),
    )
    found.write(target / "comparison.json")
    (target / "comparison.md").write_text(markdown(found))
    draw_comparison(found, target / "comparison.png")
    return found


def _folds(path: Path, fold: int | str) -> tuple[str, ...]:
    """The fold that held out the same cases, where a model has it, else all that it has."""
    from segpipe.models.read import read_any_model

    model = read_any_model(path)
    return (str(fold),) if str(fold) in model.folds else model.used(())


def _as_dataset(path: Path, folder: Path, labels: Labels) -> None:
    """Give predictions the dataset's label values, where the model has others: labels are the same by their names.

    Raises
    ------
    ModelError
        If the model does not know one of the labels.
    """
    import numpy as np

    from segpipe.io.formats import IMAGE_ENDINGS, read_volume, write_labels_like
    from segpipe.models.read import read_any_model

    theirs = {t.name: t.paint for t in read_any_model(path).plan.labels.targets}
    ours = {t.name: t.paint for t in labels.targets}
    missing = [name for name in ours if name not in theirs]
    if missing:
        raise ModelError(f"{path}: does not know {', '.join(missing)}; it knows {', '.join(theirs)}")
    if {name: theirs[name] for name in ours} == ours:
        return
    for file in folder.iterdir():
        if file.name.endswith(IMAGE_ENDINGS):
            found = read_volume(file).array[0]
            renamed = np.zeros(found.shape, dtype=np.min_scalar_type(max(ours.values())))
            for name, value in ours.items():
                renamed[found == theirs[name]] = value
            write_labels_like(file, file, renamed)


def _cost(
    name: str,
    path: Path,
    folds: tuple[str, ...],
    cases: list[Case],
    folder: Path,
    devices: list[str],
    *,
    tta: bool,
    threads: int,
) -> tuple[ModelCosts, Path, dict[str, str]]:
    """Count a model, and let it predict the cases on each device; also the folder of the last one's predictions, and what failed."""
    from segpipe.evaluation.comparison import ModelCosts
    from segpipe.execution import processes as jobs
    from segpipe.inference.inputs import InputCase
    from segpipe.workflows.compare.cost import Run, count, run

    counted = count(path, folds, tta=tta)
    runs: list[Run] = []
    places = [folder / device.replace(":", "_") for device in devices]
    for device, place in zip(devices, places, strict=True):
        place.mkdir(parents=True, exist_ok=True)
        inputs = [InputCase(c.id, tuple(i.path for i in c.images), place / _output(c)) for c in cases]
        try:
            runs.append(
                jobs.in_own_process(
                    run, path, folds, inputs, place / "predictions.jsonl", tta=tta, device=device, threads=threads
                )
            )
        except SegpipeError as error:
            raise SegpipeError(f"{name} on {device}: {error}") from error
    windows = runs[0].windows_per_case
    cost = ModelCosts(
        name=name,
        path=str(path),
        digest=counted.digest,
        folds=folds,
        parameters=counted.parameters,
        macs_per_case=int(counted.macs_per_window * windows),
        file_mb=round(counted.file_mb, 3),
        latency=tuple(r.latency for r in runs),
    )
    return cost, places[-1], {case: why for r in runs for case, why in r.failed.items()}


def _output(case: Case) -> str:
    from segpipe.io.formats import output_ending

    return f"{case.id}{output_ending(case.images[0].path)}"


def _scores(evaluation: Evaluation) -> ModelScores:
    from segpipe.evaluation.comparison import ALL_LABELS, ModelScores

    by_label = {
        name: {"dice": s.mean_dice, "nsd": s.mean_nsd, "hd95_mm": s.mean_hd95_mm}
        for name, s in evaluation.by_label.items()
    }
    by_label[ALL_LABELS] = {
        "dice": evaluation.mean_dice,
        "nsd": evaluation.mean_nsd,
        "hd95_mm": evaluation.mean_hd95_mm,
    }
    return ModelScores.model_validate(
        {"by_label": by_label, "n_missed": evaluation.n_missed, "failed": evaluation.failed}
    )


def _statistics(
    costs: list[ModelCosts], evaluations: dict[str, Evaluation], patients: Mapping[str, str]
) -> dict[str, object]:
    """What each model keeps of the first, and the paired differences of each two."""
    from segpipe.evaluation.comparison import ALL_LABELS, METRICS
    from segpipe.evaluation.statistics import difference, paired_scores, retention

    first = costs[0]
    kept = [
        retention(
            c.name,
            evaluations[first.name].cases,
            evaluations[c.name].cases,
            patients,
            parameters=100 * c.parameters / first.parameters,
            macs=100 * c.macs_per_case / first.macs_per_case if first.macs_per_case else None,
        )
        for c in costs[1:]
    ]
    labels = [ALL_LABELS, *next(iter(evaluations.values())).by_label]
    differences = []
    for one, other in combinations([c.name for c in costs], 2):
        for label in labels:
            for metric in METRICS:
                scores = paired_scores(evaluations[one].cases, evaluations[other].cases, patients, label, metric)
                differences.append(difference((one, other), scores, label, metric))
    return {"retention": tuple(kept), "differences": tuple(differences)}


def _names(paths: list[Path]) -> list[str]:
    """Short names that tell the models apart: those of their folders, as far up as is needed."""
    parts = [[p for p in path.resolve().parts if p != "model.segpipe"] for path in paths]
    if len({tuple(p) for p in parts}) < len(parts):
        raise ModelError("a model is given twice; give each once")
    for n in range(1, max(map(len, parts)) + 1):
        names = ["_".join(p[-n:]).removesuffix(".segpipe") for p in parts]
        if len(set(names)) == len(names):
            return names
    raise AssertionError("different paths have different parts")
