"""One study of a cross-validation: everything is chosen on its own cases, and only then are its test cases looked at.

Each function here is a job: it may run in any process, on any machine that sees the same files, and finds by itself what is done already.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from segpipe.artefact import Artefact, json_digest
from segpipe.crossvalidation.candidates import Candidate
from segpipe.crossvalidation.folder import CrossvalFolder, StudyFolder
from segpipe.crossvalidation.schema import CrossvalDesign, CrossvalSplits, OuterFold, Selection
from segpipe.errors import ArtefactError, CrossvalError, ModelError
from segpipe.graph import Inputs
from segpipe.locks import locked
from segpipe.steps import (
    FoldSettings,
    keep_plan_as,
    make_plan,
    plan_for_network,
    prepare_arrays,
    train_fold,
    variant_called,
)
from segpipe.watch import Watch
from segpipe.workspace import Workspace

if TYPE_CHECKING:
    from collections.abc import Sequence

    from segpipe.crossvalidation.select import Members
    from segpipe.dataset.schema import Case
    from segpipe.evaluation.schema import Evaluation
    from segpipe.inference.run import Onlooker
    from segpipe.labels import Labels
    from segpipe.modelfile import ModelFile
    from segpipe.planning.schema import Plan
    from segpipe.preprocessing.schema import PreprocessedIndex
    from segpipe.runtime import Runtime
    from segpipe.training.schema import TrainingRecord

WINNER = "winner"
_VALIDATION_SHARE = 1 / 3
"""Of a training step's time, what a batch of validation takes: there is no backward pass."""


class CandidatePlan(Artefact):
    """What became of a candidate in one study."""

    candidate: Candidate
    variant: str
    plan_digest: str
    epochs: int | None
    """How long it is trained; None for the recipe's."""
    step_s: float | None = None
    """Of a training step, from which the epochs follow that fit the minutes."""


class Done(Artefact):
    """That a job is done."""

    inputs: str
    output: str
    seconds: float


@dataclass(frozen=True)
class Task:
    """Which job of which cross-validation."""

    kind: str
    root: Path
    """The workspace of the whole dataset."""
    study: str
    candidate: int | None = None
    fold: int | None = None
    configuration: str | None = None
    device: str = "auto"
    threads: int | None = None
    """Threads of a job; None for all that its worker may use."""

    @property
    def name(self) -> str:
        """Within its study."""
        parts = [self.kind, self.candidate, None if self.fold is None else f"fold_{self.fold}", self.configuration]
        return "_".join(str(part) for part in parts if part is not None)

    @property
    def id(self) -> str:
        """Within the cross-validation."""
        return f"{self.study}/{self.name}"

    def sibling(self, kind: str, *, candidate: int | None = None, fold: int | None = None) -> Task:
        """Another job of the same study."""
        return replace(self, kind=kind, candidate=candidate, fold=fold, configuration=None)


class _Notes(Watch):
    """Notes of a job, as lines of a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def note(self, text: str) -> None:
        with self.path.open("a") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")


@dataclass(frozen=True)
class _Work:
    """A job with all that it may look at."""

    task: Task
    inputs: Inputs
    design: CrossvalDesign
    study: OuterFold
    main: CrossvalFolder
    folder: StudyFolder
    watch: Watch

    @property
    def workspace(self) -> Workspace:
        return self.folder.workspace

    def runtime(self) -> Runtime:
        from segpipe.runtime import choose_runtime

        return choose_runtime(self.task.device, deterministic=self.design.deterministic)

    def candidate(self, number: int) -> CandidatePlan:
        return CandidatePlan.read(self.folder.candidate(number))

    def plan_of(self, chosen: CandidatePlan) -> Plan:
        from segpipe.planning.schema import Plan

        return Plan.read(self.workspace.plan_of(chosen.variant))

    def complete(self) -> dict[int, CandidatePlan]:
        """Candidates of which every inner fold was trained and scored, by number."""
        from segpipe.crossvalidation.design import n_candidates

        found = {}
        for number in range(n_candidates(self.design)):
            folds = [self.task.sibling("train", candidate=number, fold=k) for k in range(len(self.study.inner))]
            if all(fold.id in self.inputs.outputs for fold in folds):
                found[number] = self.candidate(number)
        return found

    def evaluations(self, chosen: CandidatePlan) -> list[Evaluation]:
        from segpipe.evaluation.schema import Evaluation

        places = [
            self.workspace.place(chosen.candidate.configuration, chosen.variant, k)
            for k in range(len(self.study.inner))
        ]
        return [Evaluation.read(self.workspace.evaluation / place.with_suffix(".json")) for place in places]


def perform(task: Task, inputs: Inputs) -> str:
    """Do a job unless it is done, alone; returns the digest of what it made."""
    from segpipe.workspace import Workspace

    main = CrossvalFolder(Workspace(task.root))
    folder = main.study(task.study)
    place = folder.job(task.name)
    # Where the one that asked was killed, or a scheduler gave a worker up too early, another may still be at it.
    with locked(place, wait=True):
        record, begun = place / "done.json", place / "begun"
        known = _done(record)
        if known is not None and known.inputs == inputs.digest:
            return known.output
        record.unlink(missing_ok=True)
        _share_processors(task.threads)
        design, splits = CrossvalDesign.read(main.design), CrossvalSplits.read(main.splits)
        splits.require_apart()
        work = _Work(task, inputs, design, splits.study(task.study), main, folder, _Notes(place / "notes.txt"))
        if not begun.is_file() or begun.read_text() != inputs.digest:
            # What lies there was made from something else.
            _KINDS[task.kind].clear(work)
            begun.write_text(inputs.digest)
        start = time.monotonic()
        try:
            output = _KINDS[task.kind].do(work)
        except Exception as error:
            work.watch.note(f"{type(error).__name__}: {error}")
            raise
        Done(inputs=inputs.digest, output=output, seconds=round(time.monotonic() - start, 2)).write(record)
    return output


def _done(record: Path) -> Done | None:
    try:
        return Done.read(record) if record.is_file() else None
    except ArtefactError:
        return None


def _share_processors(threads: int | None) -> None:
    import torch
    from loky import cpu_count

    torch.set_num_threads(threads or cpu_count())


# What a study measures and plans -------------------------------------------------------------------------------------------------


def _measure(work: _Work) -> str:
    """Measure the study's own cases, plan by them, and take down its inner folds."""
    from segpipe.dataset.schema import Dataset
    from segpipe.dataset.splits import Splits
    from segpipe.fingerprint.run import measure

    own = Dataset.read(work.main.workspace.dataset).only(frozenset(work.study.train))
    measured = measure(own, work.workspace, jobs_limit=1)
    lost = sorted(set(work.study.train) - {case.case for case in measured.cases})
    if lost:
        reason = measured.left_out.get(lost[0], "no reason was given")
        raise CrossvalError(f"{work.study.name}: case {lost[0]!r} could be read before and cannot be now ({reason})")
    plan = make_plan(measured, work.workspace, recipe=work.design.recipe)
    splits = Splits(
        dataset_digest=measured.digest(),
        grouped=any(case != group for case, group in measured.groups.items()),
        cases=work.study.train,
        folds=work.study.inner,
    )
    splits.write(work.workspace.splits)
    return json_digest([measured.digest(), plan.digest(), splits.digest()])


def _candidate(work: _Work) -> str:
    """Plan for one candidate: its network, its settings, and how long it is trained."""
    assert work.task.candidate is not None
    number = work.task.candidate
    candidate = _proposed(work, number) if work.design.space is not None else work.design.candidates[number]
    from segpipe.planning.run import read_plan

    plan = plan_for_network(work.workspace, read_plan(work.workspace), candidate.network, work.watch)
    plan.configuration(candidate.configuration)
    if candidate.settings:
        changed = plan.model_copy(update={"training": candidate.changed(plan.training)})
        plan = keep_plan_as(work.workspace, changed, variant_called(plan, candidate.settings_name))
    epochs, step_s = work.design.epochs, None
    if work.design.minutes is not None:
        epochs, step_s = _epochs_within(work, plan, candidate.configuration)
    chosen = CandidatePlan(
        candidate=candidate, variant=plan.recipe, plan_digest=plan.digest(), epochs=epochs, step_s=step_s
    )
    chosen.write(work.folder.candidate(number))
    return chosen.digest()


def _proposed(work: _Work, number: int) -> Candidate:
    """The next candidate of a search, from the trials before."""
    from segpipe.crossvalidation.search import propose
    from segpipe.crossvalidation.select import rank

    assert work.design.space is not None
    complete, trials = work.complete(), []
    for before in range(number):
        if work.task.sibling("candidate", candidate=before).id not in work.inputs.outputs:
            continue
        chosen = work.candidate(before)
        score = None
        if before in complete:
            evaluations = work.evaluations(chosen)
            cases = [case.case for evaluation in evaluations for case in evaluation.cases]
            score = rank({("",): evaluations}, cases)[0].mean_dice
        trials.append((chosen.candidate, score))
    return propose(work.design.space, trials, work.design.seed)


def _epochs_within(work: _Work, plan: Plan, configuration: str) -> tuple[int, float]:
    """Epochs that fit the minutes, from the time of a step here and now.

    A number of epochs is the same whenever a training is continued, wherever, and beside whatever; minutes are not.
    """
    from segpipe.networks.measure import seconds_of
    from segpipe.training.schedule import make_schedule

    assert work.design.minutes is not None
    chosen = plan.configuration(configuration)
    step_s = seconds_of(
        chosen.network,
        plan.n_inputs(chosen),
        plan.labels.n_outputs,
        chosen.patch_size,
        chosen.batch_size,
        work.runtime(),
    )
    n_cases = min(len(fold.train) for fold in work.study.inner)
    schedule = make_schedule(plan.training, n_cases, chosen.batch_size, epochs=None, minutes=None)
    epoch_s = step_s * (schedule.iterations_per_epoch + _VALIDATION_SHARE * plan.training.validation_batches)
    return max(round(60 * work.design.minutes / epoch_s), 1), round(step_s, 4)


def _prepare(work: _Work) -> str:
    """Prepare the arrays of one configuration, with this study's intensities and spacings."""
    from segpipe.planning.run import read_plan

    assert work.task.configuration is not None
    return prepare_arrays(work.workspace, read_plan(work.workspace), work.task.configuration, 1, work.watch).digest()


# Training and choosing -----------------------------------------------------------------------------------------------------------


def _train(work: _Work) -> str:
    """Train a candidate on an inner fold, predict what the fold held out, and score it."""
    from segpipe.held_out import score_held_out

    assert work.task.candidate is not None
    assert work.task.fold is not None
    record, plan, index = _trained(work, work.candidate(work.task.candidate), work.task.fold)
    held_out = score_held_out(
        work.workspace, plan, index, work.task.fold, work.runtime(), configuration=record.configuration, tta=work.design.tta,
        tolerance_mm=work.design.tolerance_mm, jobs=1, resume=True, watch=work.watch,
    )  # fmt: skip
    if not held_out.evaluation.cases:
        raise CrossvalError(
            f"no held-out case could be scored: {next(iter(held_out.failed.values()), 'none is there')}"
        )
    return json_digest([record.weights_sha256, held_out.evaluation.digest()])


def _trained(work: _Work, chosen: CandidatePlan, fold: int | str) -> tuple[TrainingRecord, Plan, PreprocessedIndex]:
    """Train a fold, or take it up where it was left."""
    from segpipe.held_out import prepare_first_stage
    from segpipe.preprocessing.schema import PreprocessedIndex

    plan, configuration = work.plan_of(chosen), chosen.candidate.configuration
    index = PreprocessedIndex.read(work.workspace.prepared_index(plan.arrays_of(configuration)))
    if plan.configuration(configuration).previous_stage is not None:
        with locked(work.workspace.first_stage(configuration, plan.recipe), wait=True):
            index = prepare_first_stage(
                work.workspace, plan, index, configuration, work.runtime(), jobs=1, watch=work.watch
            )
    settings = FoldSettings(
        fold=fold, epochs=chosen.epochs, seed=work.design.seed, deterministic=work.design.deterministic, resume=True
    )
    record = train_fold(
        work.workspace, plan, index, work.runtime(), settings, configuration=configuration, watch=work.watch
    )
    return record, plan, index


def _clear_fold(work: _Work) -> None:
    chosen = work.candidate(work.task.candidate or 0)
    place = work.workspace.place(chosen.candidate.configuration, chosen.variant, work.task.fold or 0)
    for folder in (work.workspace.root / "models", work.workspace.predictions):
        shutil.rmtree(folder / place, ignore_errors=True)
    (work.workspace.evaluation / place.with_suffix(".json")).unlink(missing_ok=True)


def _ensemble(work: _Work) -> str:
    """Predict and score what an inner fold held out, by pairs of candidates."""
    from segpipe.crossvalidation.select import pairs_to_try

    assert work.task.fold is not None
    complete = work.complete()
    numbers = {chosen.candidate.text: number for number, chosen in complete.items()}
    made: list[Evaluation] = []
    for members in pairs_to_try({c.candidate.text: work.evaluations(c) for c in complete.values()}):
        pair = tuple(numbers[name] for name in members)
        models = tuple(_model_of(work, complete[number]) for number in pair)
        cases = work.study.inner[work.task.fold].validation
        made.append(
            _predict_and_score(
                work, models, cases, work.folder.ensemble(pair, work.task.fold), folds=(str(work.task.fold),)
            )
        )
    return json_digest([evaluation.digest() for evaluation in made])


def _clear_ensemble(work: _Work) -> None:
    for folder in (work.folder.root / "ensembles").glob(f"*/fold_{work.task.fold}"):
        shutil.rmtree(folder)


def _select(work: _Work) -> str:
    """Compare all on the same out-of-fold cases, and choose what cleans the winner's segmentations."""
    import json

    from segpipe.crossvalidation.design import n_candidates
    from segpipe.crossvalidation.select import pairs_to_try, rank, shared_cases
    from segpipe.evaluation.schema import Evaluation

    complete = work.complete()
    if not complete:
        raise CrossvalError(f"{work.study.name}: no candidate was trained on every inner fold; the jobs before say why")
    singles = {c.candidate.text: work.evaluations(c) for c in complete.values()}
    numbers = {c.candidate.text: number for number, c in complete.items()}
    evaluated: dict[Members, Sequence[Evaluation]] = {(name,): found for name, found in singles.items()}
    folds = range(len(work.study.inner))
    design_pairs = work.design.ensembles and len(singles) > 1
    if design_pairs and all(work.task.sibling("ensemble", fold=k).id in work.inputs.outputs for k in folds):
        for pair in pairs_to_try(singles):
            folders = [work.folder.ensemble(tuple(numbers[name] for name in pair), k) for k in folds]
            evaluated[pair] = [Evaluation.read(folder / "evaluation.json") for folder in folders]
    cases = shared_cases(evaluated)
    if not cases:
        raise CrossvalError(f"{work.study.name}: no held-out case was scored by every candidate")
    ranking = rank(evaluated, cases)
    winner = ranking[0].members
    rules = _rules(work, tuple(numbers[name] for name in winner), complete, cases)
    left_out = {
        _called(work, number): "not every inner fold was trained and scored; the jobs say why"
        for number in range(n_candidates(work.design))
        if number not in complete
    }
    if design_pairs and len(evaluated) == len(singles):
        left_out["pairs of candidates"] = "not every inner fold was predicted by them; the jobs say why"
    unscored = sorted(set(work.study.train) - set(cases))
    left_out |= dict.fromkeys(unscored, "this case was not scored by every candidate, and none is compared on it")
    selection = Selection(
        study=work.study.name,
        ranking=ranking,
        winner=winner,
        left_out=left_out,
        cases=cases,
        postprocessing=json.loads(rules),
    )
    selection.write(work.folder.selection)
    return selection.digest()


def _called(work: _Work, number: int) -> str:
    """A candidate's text, where it got as far as having one."""
    if work.design.space is None:
        return work.design.candidates[number].text
    path = work.folder.candidate(number)
    return work.candidate(number).candidate.text if path.is_file() else f"trial {number}"


def _rules(work: _Work, numbers: tuple[int, ...], complete: dict[int, CandidatePlan], cases: tuple[str, ...]) -> str:
    """Rules, as JSON, chosen on the winner's out-of-fold segmentations."""
    from segpipe.postprocessing.choose import choose_rules

    pairs = []
    for k, inner in enumerate(work.study.inner):
        if len(numbers) == 1:
            chosen = complete[numbers[0]]
            place = work.workspace.place(chosen.candidate.configuration, chosen.variant, k)
            folder = work.workspace.predictions / place
        else:
            folder = work.folder.ensemble(numbers, k)
        wanted = _cases(work, set(inner.validation) & set(cases))
        pairs += [(c.id, _output(c, folder), c.label.path) for c in wanted if c.label is not None]
    labels = work.plan_of(complete[numbers[0]]).labels
    rules, failed = choose_rules(pairs, labels, chosen_on=f"out-of-fold cases of {work.study.name}", jobs_limit=1)
    for case, reason in failed.items():
        work.watch.note(f"post-processing: {case}: {reason}")
    return rules.to_json()


def _model(work: _Work) -> str:
    """Pack the winner: its inner folds averaged, or trained once more on all the study's cases."""
    import json

    from segpipe.postprocessing.schema import PostprocessingRules

    selection = Selection.read(work.folder.selection)
    complete = {c.candidate.text: c for c in work.complete().values()}
    members = [_packed(work, complete[name]) for name in selection.winner]
    rules = PostprocessingRules.model_validate_json(json.dumps(selection.postprocessing))
    model = replace(members[0], postprocessing_json=rules.to_json() if rules.rules else "", others=tuple(members[1:]))
    model.write(work.folder.model)
    return model.digest(model.used(()))


def _packed(work: _Work, chosen: CandidatePlan) -> ModelFile:
    from segpipe.modelfile import ModelFile

    if work.design.refit:
        _trained(work, chosen, "all")
    held = ModelFile.read(_model_of(work, chosen))
    if work.design.refit:
        return replace(held, folds={"all": held.folds["all"]})
    # Not by number: the fold 0 of another split may be anything.
    folds = range(len(work.study.inner))
    return replace(held, folds={f"{work.study.name}.inner_{k}": held.folds[str(k)] for k in folds})


def _clear_refit(work: _Work) -> None:
    for folder in (work.workspace.root / "models").glob("*/*/fold_all"):
        shutil.rmtree(folder)


# The test cases, after everything is chosen --------------------------------------------------------------------------------------


def _test(work: _Work) -> str:
    """Predict the test cases with the winner, score them, and count how far its probabilities are frequencies."""
    from segpipe.evaluation.reliability import Reliability
    from segpipe.modelfile import ModelFile
    from segpipe.planning.schema import Plan

    plan = Plan.model_validate_json(ModelFile.read(work.folder.model).plan_json)
    folder = work.folder.test(WINNER)
    references = {case.id: case.label.path for case in _cases(work, work.study.test) if case.label is not None}
    counting = Reliability(plan, references, folder / "calibration")
    evaluation = _predict_and_score(
        work,
        (work.folder.model,),
        work.study.test,
        folder,
        postprocess=True,
        labels=_task_labels(work),
        onlooker=counting.sink_of,
    )
    return evaluation.digest()


def _test_candidate(work: _Work) -> str:
    """Predict and score the test cases with one candidate, to compare candidates on cases that none was chosen on."""
    assert work.task.candidate is not None
    model = _model_of(work, work.candidate(work.task.candidate))
    folder = work.folder.test(str(work.task.candidate))
    folds = tuple(str(k) for k in range(len(work.study.inner)))
    evaluation = _predict_and_score(work, (model,), work.study.test, folder, folds=folds, labels=_task_labels(work))
    return evaluation.digest()


def _clear_test(work: _Work) -> None:
    name = WINNER if work.task.candidate is None else str(work.task.candidate)
    shutil.rmtree(work.folder.test(name), ignore_errors=True)


def _task_labels(work: _Work) -> Labels:
    """Labels of the whole dataset: one that no training case has is missed, not passed over."""
    from segpipe.fingerprint.schema import Fingerprint

    return Fingerprint.read(work.main.workspace.fingerprint).labels


def _predict_and_score(
    work: _Work,
    models: tuple[Path, ...],
    ids: tuple[str, ...],
    folder: Path,
    *,
    folds: tuple[str, ...] = (),
    postprocess: bool = False,
    labels: Labels | None = None,
    onlooker: Onlooker | None = None,
) -> Evaluation:
    """Predict cases into a folder, and score them there."""
    from segpipe.evaluation.run import evaluate
    from segpipe.inference.engine import network_cache
    from segpipe.inference.inputs import InputCase
    from segpipe.inference.predictor import Options, Predictor
    from segpipe.inference.run import predict

    options = Options(folds=folds, tta=work.design.tta, postprocess=postprocess, cache=network_cache())
    predictor = Predictor.load(models, work.runtime(), options)
    cases = _cases(work, ids)
    inputs = [InputCase(c.id, tuple(i.path for i in c.images), _output(c, folder)) for c in cases]
    rows = predict(inputs, predictor, folder / "predictions.jsonl", resume=True, onlooker=onlooker)
    failed = {row.case: row.reason or "" for row in rows if row.status == "failed"}
    pairs = [
        (c.id, i.output, c.label.path) for c, i in zip(cases, inputs, strict=True) if c.label and c.id not in failed
    ]
    evaluation = evaluate(
        pairs, labels or predictor.plan.labels, missing=failed, tolerance_mm=work.design.tolerance_mm, jobs_limit=1
    )
    evaluation.write(folder / "evaluation.json")
    return evaluation


def _cases(work: _Work, ids: Sequence[str] | set[str]) -> list[Case]:
    from segpipe.dataset.schema import Dataset

    return list(Dataset.read(work.main.workspace.dataset).only(frozenset(ids)).cases)


def _output(case: Case, folder: Path) -> Path:
    from segpipe.io.formats import output_ending

    return folder / f"{case.id}{output_ending(case.images[0].path)}"


def _model_of(work: _Work, chosen: CandidatePlan) -> Path:
    path = work.workspace.model(chosen.candidate.configuration, chosen.variant)
    if not path.is_file():
        raise ModelError(f"{path}: no such model; delete the folder of its jobs to have it trained again")
    return path


def _nothing(_: _Work) -> None:
    """There is nothing to clear: what is made is written over."""


@dataclass(frozen=True)
class _Kind:
    do: Callable[[_Work], str]
    clear: Callable[[_Work], None] = _nothing
    """Takes away what was made from other inputs."""


_KINDS = {
    "measure": _Kind(_measure),
    "candidate": _Kind(_candidate),
    "prepare": _Kind(_prepare),
    "train": _Kind(_train, _clear_fold),
    "ensemble": _Kind(_ensemble, _clear_ensemble),
    "select": _Kind(_select),
    "model": _Kind(_model, _clear_refit),
    "test": _Kind(_test, _clear_test),
    "test_candidate": _Kind(_test_candidate, _clear_test),
}
