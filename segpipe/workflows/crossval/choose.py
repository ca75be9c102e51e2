"""What a study chooses, by its out-of-fold cases: a candidate or a pair, and what cleans its segmentations; packed as one model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace

from segpipe.core.artefact import json_digest
from segpipe.core.regular import lies
from segpipe.crossvalidation.design import n_candidates
from segpipe.crossvalidation.schema import CandidatePlan, Proposal, Selection
from segpipe.crossvalidation.select import Members, pairs_to_try, rank, shared_cases
from segpipe.errors import CrossvalError
from segpipe.evaluation.schema import Evaluation
from segpipe.models.file import ModelFile
from segpipe.postprocessing.choose import choose_rules
from segpipe.postprocessing.schema import PostprocessingRules
from segpipe.workflows.crossval.predict import predict_and_score
from segpipe.workflows.crossval.train import trained
from segpipe.workflows.crossval.work import Work
from segpipe.workflows.scoring import Models, output_of


def ensemble(work: Work) -> str:
    """Predict and score what an inner fold held out, by pairs of candidates."""
    assert work.task.fold is not None
    complete = work.complete()
    numbers = {chosen.candidate.text: number for number, chosen in complete.items()}
    made: list[Evaluation] = []
    for members in pairs_to_try({c.candidate.text: work.evaluations(c) for c in complete.values()}):
        pair = tuple(numbers[name] for name in members)
        models = tuple(work.model_of(complete[number]) for number in pair)
        cases = work.study.inner[work.task.fold].validation
        made.append(
            predict_and_score(
                work,
                Models(models, (str(work.task.fold),), work.design.tta),
                cases,
                work.folder.ensemble(pair, work.task.fold),
                lost=_lost_by(work, [complete[number] for number in pair]),
            )
        )
    return json_digest([evaluation.digest() for evaluation in made])


def _lost_by(work: Work, members: Sequence[CandidatePlan]) -> dict[str, str]:
    """Return the cases that a member could not be scored on, with the reasons: a pair of them does not read these again."""
    assert work.task.fold is not None
    found = [work.evaluations(chosen)[work.task.fold].failed for chosen in members]
    return {case: reason for failed in found for case, reason in failed.items()}


def clear_ensemble(work: Work) -> None:
    """Take away what pairs of other candidates said."""
    for folder in (work.folder.root / "ensembles").glob(f"*/fold_{work.task.fold}"):
        shutil.rmtree(folder)


def select(work: Work) -> str:
    """Compare all on the same out-of-fold cases, and choose what cleans the winner's segmentations."""
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


def _called(work: Work, number: int) -> str:
    """A candidate's text, where it got as far as having one."""
    if work.design.space is None:
        return work.design.candidates[number].text
    path = work.folder.proposal(number)
    return Proposal.read(path).candidate.text if lies(path) else f"trial {number}"


def _rules(work: Work, numbers: tuple[int, ...], complete: dict[int, CandidatePlan], cases: tuple[str, ...]) -> str:
    """Rules, as JSON, chosen on the winner's out-of-fold segmentations."""
    pairs = []
    for k, inner in enumerate(work.study.inner):
        if len(numbers) == 1:
            chosen = complete[numbers[0]]
            place = work.workspace.place(chosen.candidate.configuration, chosen.variant, k)
            folder = work.workspace.predictions / place
        else:
            folder = work.folder.ensemble(numbers, k)
        wanted = work.cases(set(inner.validation) & set(cases))
        pairs += [(c.id, output_of(c, folder), c.label.path) for c in wanted if c.label is not None]
    labels = work.plan_of(complete[numbers[0]]).labels
    rules, failed = choose_rules(pairs, labels, chosen_on=f"out-of-fold cases of {work.study.name}", workers=1)
    for case, reason in failed.items():
        work.watch.note(f"post-processing: {case}: {reason}")
    return rules.to_json()


def model(work: Work) -> str:
    """Pack the winner: its inner folds averaged, or trained once more on all the study's cases. Then arrays are not needed any more."""
    selection = Selection.read(work.folder.selection)
    complete = {c.candidate.text: c for c in work.complete().values()}
    members = [_packed(work, complete[name]) for name in selection.winner]
    rules = PostprocessingRules.model_validate_json(json.dumps(selection.postprocessing))
    model = replace(members[0], postprocessing_json=rules.to_json() if rules.rules else "", others=tuple(members[1:]))
    model.write(work.folder.model)
    if len(complete) == n_candidates(work.design):
        # The last training of this study is over, and the arrays of every study would fill disks.
        shutil.rmtree(work.workspace.arrays, ignore_errors=True)
    return model.digest(model.used(()))


def _packed(work: Work, chosen: CandidatePlan) -> ModelFile:

    if work.design.refit:
        trained(work, chosen, "all")
    held = ModelFile.read(work.model_of(chosen))
    if work.design.refit:
        return replace(held, folds={"all": held.folds["all"]})
    # Not by number: the fold 0 of another split may be anything.
    folds = range(len(work.study.inner))
    return replace(held, folds={f"{work.study.name}.inner_{k}": held.folds[str(k)] for k in folds})


def clear_refit(work: Work) -> None:
    """Take away what was trained on all cases for another winner."""
    for folder in (work.workspace.root / "models").glob("*/*/fold_all"):
        shutil.rmtree(folder)
