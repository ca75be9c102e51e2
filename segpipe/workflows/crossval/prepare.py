"""What a study measures, plans and prepares."""

from __future__ import annotations

from segpipe.core.artefact import json_digest
from segpipe.core.regular import lies
from segpipe.crossvalidation.candidates import Candidate
from segpipe.crossvalidation.schema import CandidatePlan, Proposal, Speed
from segpipe.crossvalidation.search import propose
from segpipe.crossvalidation.select import rank
from segpipe.dataset.fingerprint.run import measure as stage
from segpipe.dataset.schema import Dataset
from segpipe.dataset.splits import Splits
from segpipe.errors import CrossvalError
from segpipe.execution.locks import locked
from segpipe.networks.build import build_network
from segpipe.networks.measure import macs, seconds_of
from segpipe.planning.run import read_plan
from segpipe.planning.schema import Plan
from segpipe.training.schedule import make_schedule
from segpipe.workflows.arrays import prepare_arrays
from segpipe.workflows.crossval.work import Work
from segpipe.workflows.planning import keep_plan_as, make_plan, plan_for_network, variant_called

_TIMED_STEPS = 5
_VALIDATION_SHARE = 1 / 3
"""Share of a training step's time that a batch of validation takes: there is no backward pass."""


def measure(work: Work) -> str:
    """Measure the study's own cases, plan by them, and take down its inner folds."""
    own = Dataset.read(work.main.workspace.dataset).only(frozenset(work.study.train))
    measured = stage(own, work.workspace, workers=1)
    work.project.matched, work.project.measured = own, measured
    lost = sorted(set(work.study.train) - {case.case for case in measured.cases})
    if lost:
        reason = measured.left_out.get(lost[0], "no reason was given")
        raise CrossvalError(f"{work.study.name}: case {lost[0]!r} could be read before and cannot be now ({reason})")
    plan = make_plan(work.project, work.design.recipe)
    splits = Splits(
        dataset_digest=measured.digest(),
        grouped=any(case != group for case, group in measured.groups.items()),
        cases=work.study.train,
        folds=work.study.inner,
    )
    splits.write(work.workspace.splits)
    return json_digest([measured.digest(), plan.digest(), splits.digest()])


def candidate(work: Work) -> str:
    """Plan for one candidate: its network, its settings, and how long it is trained."""
    assert work.task.candidate is not None
    number = work.task.candidate
    candidate = work.design.candidates[number] if work.design.space is None else _proposed(work, number)

    plan = plan_for_network(work.project, read_plan(work.workspace, work.project.measured), candidate.network)
    plan.configuration(candidate.configuration)
    timed_as = plan.recipe
    if candidate.settings:
        changed = plan.model_copy(update={"training": candidate.changed(plan.training)})
        plan = keep_plan_as(work.project, changed, variant_called(plan, candidate.settings_name))
    epochs, step_s = work.design.epochs, None
    if work.design.minutes is not None:
        epochs, step_s = _epochs_within(work, plan, candidate.configuration, timed_as)
    chosen = CandidatePlan(
        candidate=candidate, variant=plan.recipe, plan_digest=plan.digest(), epochs=epochs, step_s=step_s
    )
    chosen.write(work.folder.candidate(number))
    return chosen.digest()


def _proposed(work: Work, number: int) -> Candidate:
    """The next candidate of a search, from the trials before."""
    assert work.design.space is not None
    complete, trials = work.complete(), []
    for before in range(number):
        if not lies(work.folder.proposal(before)):
            # Lost before it was even proposed.
            continue
        # One that could not be planned or trained was tried too, without a score.
        score = None
        if before in complete:
            evaluations = work.evaluations(complete[before])
            cases = [case.case for evaluation in evaluations for case in evaluation.cases]
            score = rank({("",): evaluations}, cases)[0].mean_dice
        trials.append((Proposal.read(work.folder.proposal(before)).candidate, score))
    proposed = propose(work.design.space, trials, work.design.seed)
    Proposal(candidate=proposed).write(work.folder.proposal(number))
    return proposed


def _epochs_within(work: Work, plan: Plan, configuration: str, timed_as: str) -> tuple[int, float]:
    """Epochs that fit the minutes, from the work of a step and the speed of the network.

    A number of epochs is the same whenever a training is continued, wherever, and beside whatever; minutes are not.
    """
    assert work.design.minutes is not None
    chosen = plan.configuration(configuration)
    n_inputs = plan.n_inputs(chosen)
    network = build_network(chosen.network, n_inputs, plan.labels.n_outputs)
    gmacs = chosen.batch_size * macs(network, n_inputs, chosen.patch_size) / 1e9
    step_s = gmacs * _seconds_per_gmac(work, plan, configuration, timed_as, gmacs)
    n_cases = min(len(fold.train) for fold in work.study.inner)
    schedule = make_schedule(plan.training, n_cases, chosen.batch_size, epochs=None, minutes=None)
    epoch_s = step_s * (schedule.iterations_per_epoch + _VALIDATION_SHARE * plan.training.validation_batches)
    return max(round(60 * work.design.minutes / epoch_s), 1), round(step_s, 4)


def _seconds_per_gmac(work: Work, plan: Plan, configuration: str, timed_as: str, gmacs: float) -> float:
    """Speed of a network in training, timed by the first study that asks: it is the machine's, not the cases'."""
    path = work.main.speed(configuration, timed_as)
    with locked(path.parent, wait=True, note=work.watch.note):
        if not lies(path):
            chosen = plan.configuration(configuration)
            n_inputs, n_outputs = plan.n_inputs(chosen), plan.labels.n_outputs
            step_s = seconds_of(
                chosen.network, n_inputs, n_outputs, chosen.patch_size, chosen.batch_size, work.project.runtime, repeats=_TIMED_STEPS
            )  # fmt: skip
            Speed(seconds_per_gmac=step_s / gmacs, timed_by=work.study.name).write(path)
        return Speed.read(path).seconds_per_gmac


def prepare(work: Work) -> str:
    """Prepare the arrays of one configuration, with this study's intensities and spacings."""
    assert work.task.configuration is not None
    index = prepare_arrays(work.project, read_plan(work.workspace, work.project.measured), work.task.configuration)
    # Arrays may be deleted later; which cases were lost is still reported.
    index.write(work.folder.job(work.task.name) / "index.json")
    return index.digest()
