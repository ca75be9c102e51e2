"""`segpipe compare`: trained models compared on the held-out cases of a dataset."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

import numpy as np
import torch

from segpipe.core.labels import Labels
from segpipe.core.progress import SILENT, Watch
from segpipe.core.system_names import below, real_path
from segpipe.core.text import Table
from segpipe.core.writable import require_writable
from segpipe.dataset.schema import Case
from segpipe.errors import ModelError, SegpipeError
from segpipe.evaluation.comparison import ALL_LABELS, METRICS, Comparison, ModelCosts, ModelScores
from segpipe.evaluation.schema import Evaluation
from segpipe.evaluation.statistics import difference, paired_scores, retention
from segpipe.execution.processes import in_own_process
from segpipe.io.formats import IMAGE_ENDINGS, read_volume, write_labels_like
from segpipe.models.read import read_any_model
from segpipe.reporting.comparison import cost_rows, difference_rows, draw_comparison, markdown
from segpipe.workflows.checked import as_usage, require_device, require_fold_there, require_models, require_offered_fold
from segpipe.workflows.compare.cost import Run, count, run
from segpipe.workflows.fold import doubt_of_folds
from segpipe.workflows.options import CompareOptions
from segpipe.workflows.page import Page, plain
from segpipe.workflows.project import Project, write_asked
from segpipe.workflows.scoring import Models, Predicted, inputs_of, score_cases


def compare(options: CompareOptions, watch: Watch = SILENT) -> Comparison:
    """Measure models on the same cases: weights, work, time, memory, and scores with paired statistics.

    Writes comparison.json, comparison.md and comparison.png, and every prediction.
    """
    require_device(options.device)
    require_models(options.models, "MODEL")
    with as_usage():
        _names(options.models)
    for path in options.models:
        read_any_model(path)
    project = Project.open(options, watch)
    require_offered_fold(options.fold, project.workspace, project.dataset)
    target = options.output or project.workspace.root / "comparisons" / f"fold_{options.fold}"
    require_writable(target, "--output")
    with project.alone():
        measured = project.measure()
        require_fold_there(options.fold, project.splits)
    cases = _cases(project, options.fold)
    threads = options.threads or torch.get_num_threads()
    devices = ["cpu"] if project.runtime.device.type == "cpu" else ["cpu", project.device]
    costs: list[ModelCosts] = []
    evaluations: dict[str, Evaluation] = {}
    for path, name in zip(options.models, _names(options.models), strict=True):
        used = (options.folds or {}).get(path) or _folds(path, options.fold)
        doubt = doubt_of_folds(path, used, options.fold, project.workspace)
        if doubt:
            watch.note(f"{name}: {doubt}")
        watch.note(f"{name}: predicting {len(cases)} case(s) on {' and '.join(devices)}")
        meter = _Meter(name, Models((path,), used, options.tta), devices, threads)
        cost, predicted = meter.cost(cases, below(target / "predictions", name))
        predicted = replace(predicted, folder=_as_dataset(path, predicted.folder, measured.labels))
        costs.append(cost)
        evaluations[name] = score_cases(
            project, predicted, measured.labels, tolerance_mm=options.tolerance_mm, title=f"scoring {name}"
        )
    found = Comparison(
        dataset=project.matched.name,
        cases=tuple(c.id for c in cases),
        tta=options.tta,
        tolerance_mm=options.tolerance_mm,
        threads=threads,
        models=tuple(costs),
        scores={name: _scores(evaluation) for name, evaluation in evaluations.items()},
        **_statistics(costs, evaluations, dict(measured.groups)),
    )
    found.write(target / "comparison.json")
    (target / "comparison.md").write_text(markdown(found), encoding="utf-8", newline="\n")
    draw_comparison(found, target / "comparison.png")
    write_asked(target, "compare", options)
    return found


def tables(found: Comparison) -> list[Table]:
    """Show what models take and keep, and their differences."""
    made = {f"{found.dataset}, {len(found.cases)} cases": cost_rows(found)}
    made["Paired differences"] = difference_rows(found, labels=False)
    return [Table(title, columns, rows, range(1, len(columns))) for title, (columns, rows) in made.items()]


def page(found: Comparison, _: CompareOptions) -> Page:
    """Show the tables, and which cases have no score."""
    failed = {f"{name}: {case}": why for name, s in found.scores.items() for case, why in s.failed.items()}
    return Page(plain(found), tables(found), failed, "Cases without a score")


def _cases(project: Project, fold: int | str) -> list[Case]:
    """Return the usable cases that a fold held out, or all of them."""
    usable = {case.case for case in project.measured.cases}
    chosen = set(project.splits.fold(fold).validation) & usable if fold != "all" else usable
    return [c for c in project.matched.cases if c.label and c.id in chosen]


def _folds(path: Path, fold: int | str) -> tuple[str, ...]:
    """The fold that held out the same cases, where a model has it, else all that it has."""
    model = read_any_model(path)
    return (str(fold),) if str(fold) in model.folds else model.used(())


def _as_dataset(path: Path, folder: Path, labels: Labels) -> Path:
    """Return a folder of the predictions with the dataset's label values, where the model has others: labels are the same by their names.

    Raises
    ------
    ModelError
        If the model does not know one of the labels.
    """
    theirs = {t.name: t.paint for t in read_any_model(path).plan.labels.targets}
    ours = {t.name: t.paint for t in labels.targets}
    missing = [name for name in ours if name not in theirs]
    if missing:
        raise ModelError(f"{path}: does not know {', '.join(missing)}; it knows {', '.join(theirs)}")
    if {name: theirs[name] for name in ours} == ours:
        return folder
    renumbered = folder / "renumbered"
    for file in folder.iterdir():
        if file.name.endswith(IMAGE_ENDINGS):
            found = read_volume(file).array[0]
            renamed = np.zeros(found.shape, dtype=np.min_scalar_type(max(ours.values())))
            for name, value in ours.items():
                renamed[found == theirs[name]] = value
            write_labels_like(file, renumbered / file.name, renamed)
    return renumbered


@dataclass(frozen=True)
class _Meter:
    """Measures one model on some devices, each time in a process of its own."""

    name: str
    models: Models
    devices: list[str]
    threads: int

    def cost(self, cases: list[Case], folder: Path) -> tuple[ModelCosts, Predicted]:
        """Count the model, and let it predict the cases on each device; also the last one's predictions, and what failed."""
        counted = count(self.models)
        places = {device: folder / device.replace(":", "_") for device in self.devices}
        runs = [self._run(device, cases, place) for device, place in places.items()]
        cost = ModelCosts(
            name=self.name,
            path=str(self.models.paths[0]),
            digest=counted.digest,
            folds=self.models.folds,
            parameters=counted.parameters,
            macs_per_case=int(counted.macs_per_window * runs[0].windows_per_case),
            file_mb=round(counted.file_mb, 3),
            latency=tuple(r.latency for r in runs),
        )
        failed = {case: why for r in runs for case, why in r.failed.items()}
        return cost, Predicted(cases, places[self.devices[-1]], failed=failed)

    def _run(self, device: str, cases: list[Case], place: Path) -> Run:

        place.mkdir(parents=True, exist_ok=True)
        try:
            return in_own_process(run, self.models, inputs_of(cases, place), place, device=device, threads=self.threads)
        except SegpipeError as error:
            raise SegpipeError(f"{self.name} on {device}: {error}") from error


def _scores(evaluation: Evaluation) -> ModelScores:

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


def _names(paths: Sequence[Path]) -> list[str]:
    """Short names that tell the models apart: those of their folders, as far up as is needed."""
    parts = [[p for p in real_path(path).parts if p != "model.segpipe"] for path in paths]
    if len({tuple(p) for p in parts}) < len(parts):
        raise ModelError("a model is given twice; give each once")
    for n in range(1, max(map(len, parts)) + 1):
        names = ["_".join(p[-n:]).removesuffix(".segpipe") for p in parts]
        if len(set(names)) == len(names):
            return names
    raise AssertionError("different paths have different parts")
